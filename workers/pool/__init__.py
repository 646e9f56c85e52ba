"""Celery's worker pool: hundreds of jobs on one asyncio loop. Knows nothing of prompts.

task_pool.py   the loop's thread, its jobs, their limits and their end
bridge.py      Celery's synchronous tracer, in greenlets on that loop
tracer.py      how failures pass through the tracer
"""

from .task_pool import TaskPool

__all__ = ["TaskPool"]
