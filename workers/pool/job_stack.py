"""Whose `current_task` and `task.request` they are: the job's, wherever its context went."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from celery._state import _task_stack
from celery.utils.threads import LocalManager, LocalStack
from celery.utils.threads import get_ident as thread_ident

__all__ = ["RequestStack", "job_ident", "job_token"]

job_token: ContextVar[object | None] = ContextVar("promptmill_job", default=None)
"""The job that this code runs for; None outside of jobs."""


def job_ident() -> object:
    """Whose stack `current_task` and `task.request` are: the job's, wherever its context went.

    A context variable follows the job into sub-tasks, `asyncio.gather` and `asyncio.to_thread`; a thread or greenlet
    id does not.
    """
    return job_token.get() or thread_ident()


if not hasattr(LocalStack, "__release_local__"):
    raise ImportError(
        "USE_FAST_LOCALS is set: Celery then keeps `current_task` per thread, and jobs that share the pool's loop "
        "would read each other's. Unset USE_FAST_LOCALS."
    )
LocalManager([_task_stack], ident_func=job_ident)


class RequestStack:
    """`Task.request_stack`: Celery's LocalStack (celery/utils/threads.py), at a fifth of its cost.

    Celery looks at it eight times a job. Each job has a stack of its own, and outside of jobs each thread.
    """

    def __init__(self) -> None:
        self._stacks: dict[object, list[Any]] = {}

    def push(self, request: Any) -> None:
        self._stacks.setdefault(job_ident(), []).append(request)

    def pop(self) -> Any:
        """The topmost request, which is off the stack now; None where there was none."""
        owner = job_ident()
        if not (stack := self._stacks.get(owner)):
            return None
        request = stack.pop()
        if not stack:
            del self._stacks[owner]
        return request

    @property
    def top(self) -> Any:
        stack = self._stacks.get(job_token.get() or thread_ident())  # `job_ident`, which is called most from here
        return stack[-1] if stack else None

    @property
    def stack(self) -> list[Any]:
        return self._stacks.get(job_ident(), [])

    def __len__(self) -> int:
        return len(self.stack)
