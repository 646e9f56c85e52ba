"""Celery's worker pool: hundreds of jobs on one asyncio loop. Knows nothing of prompts but that a job may be parked.

task_pool.py    what Celery asks of a pool, on the hub's thread
shutdown.py     what SIGTERM and SIGQUIT do with the jobs that run
job_loop.py     the loop's thread, and the jobs on it (job.py)
aside.py        ends of jobs that take no place
handover.py     from the hub's thread to the loop's, and back
greenlets.py    Celery's synchronous tracer, in greenlets on that loop
places.py       how many of its places are taken
threads.py      blocking calls of jobs
app.py          app and task classes whose tasks may be coroutines
job_stack.py    `current_task` and `task.request` for jobs that share a thread
tracer.py       how failures pass through the tracer
"""

from .task_pool import TaskPool

__all__ = ["TaskPool"]
