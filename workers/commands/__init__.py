"""The faces for people: each command of `promptmill` in a file or a folder of its name.

run/        every row of a file through the queue
metrics/    the exporter for Prometheus
doctor.py   everything that a worker needs
ladders.py  `doctor --ladder`
limits.py   the shared limiters as they stand
jobs.py     `status` and `cancel`
dead.py     the dead letters
cache.py    the stored answers
simulate.py the provider for trials
common.py   one --redis, one --json
failing.py  one way to fail
"""
