"""One task in the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .greenlets import Cancellable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from functools import partial

    from billiard.einfo import ExceptionInfo

__all__ = ["Job"]


class Job(Cancellable):
    """What Celery holds to end it early (by weak reference, hence `__weakref__`)."""

    __slots__ = (
        "__weakref__",
        "callback",
        "error_callback",
        "is_bridged",
        "outcome",
        "run",
        "soft_timeout_s",
        "task",
        "timeout_callback",
        "timeout_s",
        "timers",
        "token",
    )

    def __init__(
        self,
        token: int,
        run: partial[Any],
        *,
        callback: Callable[[Any], None] | None,
        error_callback: Callable[[ExceptionInfo], None] | None,
        timeout_callback: Callable[[bool, float], None] | None,
        soft_timeout_s: float | None,
        timeout_s: float | None,
        is_bridged: bool,
    ) -> None:
        super().__init__(may_be_interrupted=soft_timeout_s is not None)
        self.token = token
        self.run = run
        self.callback = callback
        self.error_callback = error_callback
        self.timeout_callback = timeout_callback
        self.soft_timeout_s = soft_timeout_s
        self.timeout_s = timeout_s
        self.is_bridged = is_bridged
        """Its task is one of the bridge's, whose tracer runs on the loop."""
        self.task: asyncio.Task[None] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.outcome: Callable[[], Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the loop is done with it; the hub may not know yet."""
        return self.task is not None and self.task.done()

    def terminate(self, signum: int | None = None) -> None:
        """Nothing: Celery calls `terminate_job` first, and this right after it, for pools that may have missed it.

        To pass it on would cancel, or interrupt, twice: the second would hit the task's clean-up after the first.
        """
