"""Time-outs and cancellations that don't get lost on the way.

`asyncio.wait_for` of Python 3.11, which redis-py uses for each send, loses a cancellation that comes together with its
result (fixed in 3.12). One in a few hundred; and then a caller's `task.cancel()` does nothing, and `asyncio.timeout`,
which cancels once, lets redis-py go on through all of its retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["is_stopped", "stop", "within"]

_INSIST_S: Final = 0.05


@contextmanager
def within(timeout_s: float, *, turns: int = 1) -> Iterator[None]:
    """As `asyncio.timeout`, but cancels again until the block ends. Raises TimeoutError.

    With more `turns` the time is counted in so many pieces, each at least one turn of the loop: a loop that stood still
    reads first what has come meanwhile, and the other side is not taken to be away because we were busy.

    A cancellation from outside that nothing inside let through is raised at the end.
    """
    alarm = _Alarm(timeout_s, turns)
    try:
        yield
    except asyncio.CancelledError:
        if alarm.stop() or not alarm.rang:
            raise
        raise TimeoutError from None
    except BaseException:
        alarm.stop()
        raise
    if alarm.stop():
        raise asyncio.CancelledError


class _Alarm:
    """Cancels the current task when the time is up, and again until it is stopped."""

    def __init__(self, timeout_s: float, turns: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._before = _cancellations()
        self.rang = 0
        self._piece_s = timeout_s / turns
        self._left = turns
        self._timer = self._loop.call_later(self._piece_s, self._count)

    def _count(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._piece_s, self._count)
        else:
            self._ring()

    def _ring(self) -> None:
        assert self._task is not None
        self.rang += 1
        self._task.cancel()
        self._timer = self._loop.call_later(_INSIST_S, self._ring)

    def stop(self) -> bool:
        """Take back its own cancellations; whether there is one of somebody else's."""
        assert self._task is not None
        self._timer.cancel()
        for _ in range(self.rang):
            self._task.uncancel()
        return _cancellations() > self._before


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
