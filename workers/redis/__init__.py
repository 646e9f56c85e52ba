"""Our own Redis, as a worker process sees it.

clock.py      its time, as one estimate for the whole process
patience.py   asking until it answers: its errors are no job's result
"""
