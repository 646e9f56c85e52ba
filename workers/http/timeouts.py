"""Time-outs for hundreds of calls at a time.

As `asyncio.timeout`, which sets and cancels a timer of the loop for each call. Here all calls of one duration share
one: they time out in the order in which they began, so only the first of them needs it. What is put off all the time
has a timer of its own, a `Silence`, that is set anew only when it fires.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Silence", "Timeout", "Timeouts"]


class Timer(Protocol):
    """Says when a time-out is over, by its `expire`."""

    def join(self, timeout: Timeout[Timer]) -> None: ...
    def leave(self, timeout: Timeout[Timer]) -> None: ...


T_co = TypeVar("T_co", bound=Timer, covariant=True)


class Timeouts:
    """Those of one loop. Make it on that loop."""

    def __init__(self, error: type[TimeoutError] = TimeoutError) -> None:
        """What times out raises `error`."""
        self._error = error
        self._loop = asyncio.get_running_loop()
        self._queues: dict[float, _Queue] = {}

    def after(self, seconds: float) -> Timeout[_Queue]:
        """A context that cancels what runs in it after so many seconds, and makes the error of that."""
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = _Queue(self._loop, seconds)
        return Timeout(queue, self._error)

    def silence(self, seconds: float) -> Timeout[Silence]:
        """A context that cancels what runs in it once it was not heard of for so many seconds."""
        return Timeout(Silence(self._loop, seconds), self._error)


class Timeout(Generic[T_co]):
    """Enter it once, in a task. Gives its timer."""

    __slots__ = ("_cancelling", "_error", "_task", "_timer", "expires_at", "has_expired")

    def __init__(self, timer: T_co, error: type[TimeoutError]) -> None:
        self._timer = timer
        self._error = error
        self.expires_at = 0.0
        """By the loop's clock."""
        self.has_expired = False

    def __enter__(self) -> T_co:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time-out needs a task that it can cancel")
        self._task, self._cancelling = task, task.cancelling()
        self._timer.join(self)
        return self._timer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.leave(self)
        # Somebody else may have cancelled the task too, and then it is theirs to hear of.
        if self.has_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error from error

    def expire(self) -> None:
        """Cancel the task."""
        self.has_expired = True
        self._task.cancel()


class Silence:
    """The timer of one time-out. Set `heard_at` to `now()` whenever something has come."""

    __slots__ = ("_handle", "_loop", "_seconds", "_timeout", "heard_at", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.now = loop.time
        """The clock."""
        self.heard_at = 0.0
        """By that clock."""
        self._loop = loop
        self._seconds = seconds

    def join(self, timeout: Timeout[Timer]) -> None:
        self._timeout = timeout
        self.heard_at = self.now()
        self._handle = self._loop.call_at(self.heard_at + self._seconds, self._look)

    def leave(self, timeout: Timeout[Timer]) -> None:
        self._handle.cancel()

    def _look(self) -> None:
        ends_at = self.heard_at + self._seconds
        if ends_at > self.now():
            self._handle = self._loop.call_at(ends_at, self._look)
        else:
            self._timeout.expire()


class _Queue:
    """The running time-outs of one duration, the oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._running: dict[Timeout[Timer], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, timeout: Timeout[Timer]) -> None:
        timeout.expires_at = self._loop.time() + self._seconds
        self._running[timeout] = None
        if self._timer is None:
            self._timer = self._loop.call_at(timeout.expires_at, self._expire)

    def leave(self, timeout: Timeout[Timer]) -> None:
        self._running.pop(timeout, None)

    def _expire(self) -> None:
        # The timer may have been set for one that has left, so mostly nothing is due.
        now = self._loop.time()
        self._timer = None
        due = []
        for timeout in self._running:
            if timeout.expires_at > now:
                self._timer = self._loop.call_at(timeout.expires_at, self._expire)
                break
            due.append(timeout)
        for timeout in due:
            del self._running[timeout]
            timeout.expire()
