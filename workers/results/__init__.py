"""Celery's result backend over Redis: the results of many jobs in one round trip.

backend.py       the backend
entry.py         one outcome on its way: value, record, compression
script.py        stores outcomes (lua/store.lua), at a replica too where that is wanted
writer.py        gathers outcomes on the loop, and writes them from a thread
revocations.py   the ends of cancelled and expired jobs
endings.py       a thread that records them while the consumer goes on
place.py         which Redis that is; names.py: its keys, and how long they live
lua/             store, claim, ended
"""

from .backend import Backend, SentinelBackend, lifespan

__all__ = ["Backend", "SentinelBackend", "lifespan"]
