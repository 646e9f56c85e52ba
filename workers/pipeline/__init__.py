"""The life of one prompt, from a message to its result; no Celery and no Redis.

pipeline.py      the rungs, outermost first: start reading here
retry.py         whether and when to try again: decisions are values
outages.py       providers that can't be reached from this process
offers.py        which models this worker can call, and whether another can
record_size.py   how large a result's record may be
"""
