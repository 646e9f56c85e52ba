"""Our own Redis, as a worker process sees it.

clock.py      its time, as one estimate for the whole process
patience.py   asking until it answers: its errors are no job's result
link.py       script calls of one turn of the loop travel together
channel.py    hearing at once what other workers publish
"""
