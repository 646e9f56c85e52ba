"""Celery's worker pool: hundreds of jobs on one asyncio loop. Knows nothing of prompts but that a job may be parked.

task_pool.py   the loop's thread, its jobs, their limits and their end
greenlets.py   Celery's synchronous tracer, in greenlets on that loop
threads.py     blocking calls of jobs
app.py         app and task classes whose tasks may be coroutines
job_stack.py   `current_task` and `task.request` for jobs that share a thread
tracer.py      how failures pass through the tracer
"""

from .task_pool import TaskPool

__all__ = ["TaskPool"]
