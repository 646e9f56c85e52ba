"""Ends of jobs that take no place in the pool: they wait for nothing but that their results are stored."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from .handover import Inbox

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from .handover import Outbox
    from .job_loop import JobLoop

__all__ = ["Aside"]

Ending: TypeAlias = "tuple[str, Callable[[], Future[None]], Callable[[BaseException | None], None]]"


class Aside:
    """Calls `store` on the loop's thread; when what that returns is done, `then` on the hub's, with the exception if
    there was one. As `results.endings`, whose `store` blocks a thread."""

    def __init__(self, loop: JobLoop, outbox: Outbox) -> None:
        self._outbox = outbox
        self._inbox: Inbox[Ending] = Inbox(loop.call_soon, self._begin)
        self.under_way: dict[str, Ending] = {}
        """By the tags of their messages. A shutdown waits until there is none."""

    def put(self, tag: str, store: Callable[[], Future[None]], then: Callable[[BaseException | None], None]) -> None:
        """End a job. On the hub's thread."""
        ending = self.under_way[tag] = tag, store, then
        self._inbox.put(ending)

    def _begin(self, ending: Ending) -> None:
        tag, store, then = ending
        try:
            stored = store()
        except Exception as problem:  # noqa: BLE001 - whatever it is, `then` decides what becomes of the job
            self._ended(tag, then, problem)
        else:
            stored.add_done_callback(partial(self._on_stored, tag, then))

    def _on_stored(self, tag: str, then: Callable[[BaseException | None], None], stored: Future[None]) -> None:
        self._ended(tag, then, stored.exception())

    def _ended(self, tag: str, then: Callable[[BaseException | None], None], problem: BaseException | None) -> None:
        self._outbox.post(partial(self._finish, tag, then, problem))

    def _finish(self, tag: str, then: Callable[[BaseException | None], None], problem: BaseException | None) -> None:
        del self.under_way[tag]
        then(problem)
