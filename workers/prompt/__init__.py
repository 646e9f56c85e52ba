"""The words that the engine speaks of one prompt with.

job.py          a prompt job, read from a Celery message
failure.py      what goes wrong with it, as a value
parked.py       its place given back, to be run again later
secret.py       the provider's key, which must not be in it
compression.py  whether its record is stored compressed
"""
