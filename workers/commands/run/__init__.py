"""`promptmill run`: every row of a file through the queue, and one row of output for each.

command.py    the face: options in, exit code out
options.py    what a run was asked to do
session.py    a run from start to end: what is checked, started and stopped, in which order
conveyor/     rows into the queue and results out of it, a window of them at a time
notices.py    what workers tell of why their jobs wait
input/        lines, rows, and what they ask for
output/       the output file, progress and summary
processes/    Redis, the simulated provider and the workers, which end with the run
beside.py, errors.py
"""
