"""Celery's result backend over Redis: the results of many jobs in one round trip.

backend.py   the backend, and the writer that collects what the loop's jobs store
endings.py   ends of jobs that do not run (cancelled or expired), stored on a thread
lua/         store, claim, ended
"""

from .backend import Backend, SentinelBackend, lifespan

__all__ = ["Backend", "SentinelBackend", "lifespan"]
