"""How one limiter goes on while Redis is away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .caller import CALL_TIMEOUT_S, RETRY_S
from .degraded import LocalPace
from .slots import Slot

if TYPE_CHECKING:
    import asyncio

    from ..heard.pauses import Pauses
    from ..waiting.dispatch import Dispatcher
    from ..waiting.wait_queue import Waiter, WaitQueue
    from .degraded import WhenAway
    from .leases import Leases

__all__ = ["Outage"]

logger = logging.getLogger("promptmill.limiter")


class Outage:
    """From the first call without an answer until the next with one."""

    def __init__(
        self,
        when_away: WhenAway,
        degraded_for_s: float,
        *,
        queue: WaitQueue[Waiter],
        pauses: Pauses,
        dispatcher: Dispatcher,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._when_away = when_away
        self._degraded_for_s = degraded_for_s
        self._queue = queue
        self._pauses = pauses
        self._dispatcher = dispatcher
        self._loop = loop
        self._pace: LocalPace | None = None

    @property
    def lets_all_go(self) -> bool:
        """Whether everybody may go while it lasts."""
        return self._when_away == "open"

    def begin(self, leases: Leases, error: Exception) -> None:
        """The schedule went away."""
        self._pace = self._local_pace(leases)
        logger.warning("Redis is away (%s): the limits are %s until it is back", type(error).__name__, self._when_away)

    def go_without(self, leases: Leases) -> None:
        """It is away, still."""
        if self.lets_all_go or leases.plan.is_free:
            if self._loop.time() >= self._pauses.until:
                self._dispatcher.let_all_go(leases.instant())
        elif self._pace is not None:
            self._lease_locally(leases, self._pace)

    def end(self, leases: Leases, away_s: float) -> None:
        """The schedule is back after so many seconds."""
        logger.info("Redis is back after %.1f s: the limits are shared again", away_s)
        self._pace = None
        leases.slots.drop_local()

    def _local_pace(self, leases: Leases) -> LocalPace | None:
        if self._when_away != "degraded" or leases.grant is None or not leases.plan.dimensions:
            return None
        # What is leased is sent yet, by us and by the others; a share beside it would be too much. How far ahead they
        # have leased, nobody knows; about as far as when we last asked.
        begins = self._loop.time() + leases.sold_ahead_s
        if leases.slots:
            begins = max(begins, leases.slots.last_due)
        return LocalPace.begin(leases.plan, processes=leases.grant.processes, now=begins, for_s=self._degraded_for_s)

    def _lease_locally(self, leases: Leases, pace: LocalPace) -> None:
        begins = max(self._loop.time(), self._pauses.until)
        waiters = [each for each in self._queue.upcoming(len(self._queue)) if not each.has_slot]
        horizon_s = CALL_TIMEOUT_S + 2 * RETRY_S
        instants = pace.lease((each.cost for each in waiters), now=begins, horizon_s=horizon_s)
        for waiter, at in zip(waiters, instants, strict=False):
            instant = leases.instant(at)
            assert instant is not None, "a local pace begins after a grant"
            leases.slots.add(Slot(at, instant, waiter.cost, waiter, is_local=True))
        leases.slots.arm()
