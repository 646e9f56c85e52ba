"""Whose `current_task` and `task.request` they are: the job's, wherever its context went."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from celery._state import _task_stack
from celery.utils.threads import LocalStack
from celery.utils.threads import get_ident as thread_ident

__all__ = ["JobStack", "job_token"]

job_token: ContextVar[object | None] = ContextVar("promptmill_job", default=None)
"""The job that this code runs for; None outside of jobs."""


if not hasattr(LocalStack, "__release_local__"):
    raise ImportError(
        "USE_FAST_LOCALS is set: Celery then keeps `current_task` per thread, and jobs that share the pool's loop "
        "would read each other's. Unset USE_FAST_LOCALS."
    )


class JobStack(LocalStack):  # type: ignore[misc]  # Celery publishes no types
    """Celery's LocalStack (celery/utils/threads.py), at a fifth of its cost: it is looked at twelve times a job.

    Each job has a stack of its own, wherever its context went, and outside of jobs each thread: a context variable
    follows the job into sub-tasks, `asyncio.gather` and `asyncio.to_thread`; a thread or greenlet id does not.
    """

    _stacks: dict[object, list[Any]]
    """By whose they are. Each method asks that itself: a call of another would be half of its cost."""

    def __init__(self) -> None:
        super().__init__()
        self._stacks = {}

    def push(self, item: Any) -> list[Any]:
        stack = self._stacks.setdefault(job_token.get() or thread_ident(), [])
        stack.append(item)
        return stack

    def pop(self) -> Any:
        """The topmost item, which is off the stack now; None where there was none."""
        owner = job_token.get() or thread_ident()
        if not (stack := self._stacks.get(owner)):
            return None
        item = stack.pop()
        if not stack:
            del self._stacks[owner]
        return item

    @property
    def top(self) -> Any:
        stack = self._stacks.get(job_token.get() or thread_ident())
        return stack[-1] if stack else None

    @property
    def stack(self) -> list[Any]:
        return self._stacks.get(job_token.get() or thread_ident(), [])

    def __len__(self) -> int:
        return len(self._stacks.get(job_token.get() or thread_ident(), ()))


# `current_task` is on a stack that many of Celery's modules have imported: this very object has to become one of ours.
_task_stack.__class__ = JobStack
_task_stack._stacks = {}
