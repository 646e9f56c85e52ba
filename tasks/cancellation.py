"""Cancellations that don't get lost on the way.

`asyncio.wait_for` of Python 3.11, which redis-py uses for each send, loses a cancellation that comes together with its
result (fixed in 3.12): one in a few hundred, and then a caller's `task.cancel()` does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_stopped", "keep_cancellation", "stop"]


@contextmanager
def keep_cancellation() -> Iterator[None]:
    """Raise CancelledError at the end if the task was cancelled meanwhile and nothing inside let it through."""
    before = _cancellations()
    yield
    if _cancellations() > before:
        raise asyncio.CancelledError


def is_stopped() -> bool:
    """Whether the current task was cancelled; for loops that would otherwise go on for ever."""
    return _cancellations() > 0


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks until they have ended."""
    remaining = set(tasks)
    while remaining:
        for task in remaining:
            task.cancel()
        _, remaining = await asyncio.wait(remaining, timeout=0.2)


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
