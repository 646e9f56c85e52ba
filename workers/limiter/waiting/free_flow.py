"""Requests of a model of which no limit is known go at once, but the first of all goes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from ..heard.pauses import Pauses
    from ..leasing.leases import Leases
    from ..leasing.outage import Outage
    from .dispatch import Dispatcher
    from .wait_queue import Waiter, WaitQueue

__all__ = ["ALONE_S", "FreeFlow"]

ALONE_S = 1.0
"""How long the first request to a model without known limits is alone at most: its answer may state them."""


class FreeFlow:
    """Who need not wait for a slot."""

    def __init__(
        self,
        leases: Leases,
        outage: Outage,
        *,
        queue: WaitQueue[Waiter],
        pauses: Pauses,
        dispatcher: Dispatcher,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._leases = leases
        self._outage = outage
        self._queue = queue
        self._pauses = pauses
        self._dispatcher = dispatcher
        self._loop = loop
        self._has_answer = False
        self._alone_until: float | None = None

    def admits(self) -> bool:
        """Whether a request that comes now goes at once."""
        leases, grant = self._leases, self._leases.grant
        is_away = leases.caller.is_away
        if not leases.plan.is_free:
            return is_away and self._outage.lets_all_go and not self._is_paused()
        if is_away and grant is None:
            return True
        if leases.learned.is_open and not is_away:
            return False  # an answer has just stated a limit
        if not self._has_answer and self._must_wait_for_the_first():
            return False
        return grant is not None and not grant.is_capped and not self._is_paused() and not self._queue

    def let_go(self) -> None:
        """Those who wait, if nothing is limited as far as anybody knows."""
        leases, grant = self._leases, self._leases.grant
        if grant is None or grant.is_capped or not leases.plan.is_free or self._is_paused():
            return
        if self._has_answer:
            self._dispatcher.let_all_go(leases.instant())
        elif self._alone_until is None:
            self._dispatcher.let_one_go(leases.instant())
        elif not self._must_wait_for_the_first():
            self._dispatcher.let_all_go(leases.instant())

    def note_sent(self) -> None:
        """A request goes. The first of all goes alone."""
        if not self._has_answer and self._alone_until is None and self._leases.plan.is_free:
            self._alone_until = self._loop.time() + ALONE_S
            self._loop.call_at(self._alone_until, self.let_go)

    def note_answer(self) -> None:
        """An answer came."""
        if not self._has_answer:
            self._has_answer = True
            if not self._leases.learned.is_open:  # else when the schedule has answered
                self.let_go()

    def _must_wait_for_the_first(self) -> bool:
        return self._alone_until is not None and self._loop.time() < self._alone_until

    def _is_paused(self) -> bool:
        return self._loop.time() < self._pauses.until
