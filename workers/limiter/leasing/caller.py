"""The one conversation of a limiter with its schedule: a call at a time, and again what had no answer."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from ...redis.link import AWAY
from ..shared.schedule import PauseReport
from .slots import EARLY_S

if TYPE_CHECKING:
    from ..shared.schedule import Ask, Schedule
    from .leases import Leases
    from .outage import Outage

__all__ = ["CALL_TIMEOUT_S", "LEAST_GAP_S", "RETRY_S", "Caller"]

logger = logging.getLogger("promptmill.limiter")

CALL_TIMEOUT_S = 1.0
RETRY_S = 0.25
LEAST_GAP_S = 0.005
"""Between two calls, so that arrivals of one moment share a call."""


class Caller:
    """Sleeps until `leases` wants a call or a pause has to be reported, and hands on what was answered."""

    def __init__(self, schedule: Schedule, leases: Leases, outage: Outage, loop: asyncio.AbstractEventLoop) -> None:
        self.schedule = schedule
        self.called_at = -math.inf
        self.is_closing = False
        self._leases = leases
        self._outage = outage
        self._loop = loop
        self._seq = 0
        self._pending: Ask | None = None
        self._report: PauseReport | None = None
        self._retry_at = -math.inf
        self.is_away = False
        """Whether the schedule could not be reached at the last call."""
        self._away_since = math.inf
        self._has_spoken = False
        self._wake = asyncio.Event()
        self._sleeps_until = -math.inf
        self._task = loop.create_task(self._keep_calling())

    @property
    def is_busy(self) -> bool:
        """Whether something has yet to be said or answered."""
        return self.is_away or self._pending is not None or self._report is not None

    def nudge(self, at: float) -> None:
        """`leases` may want a call at `at` already."""
        if at < self._sleeps_until:
            self._wake.set()

    def report(self, pause: PauseReport) -> None:
        """A 429: it is reported before anything else."""
        self._report = _joined(self._report, pause)
        self.nudge(self._loop.time())

    async def close(self) -> None:
        """Take leave of the schedule. Raises `TimeoutError` if it does not answer within two calls' time."""
        self.is_closing = True
        self._wake.set()
        async with asyncio.timeout(2 * CALL_TIMEOUT_S):
            await self._task

    async def _keep_calling(self) -> None:
        while not self.is_closing:
            await self._until_due()
            if self.is_closing:
                break
            try:
                await (self._tell_pause() if self._report is not None else self._call())
            except Exception:  # a fault of ours must not leave everybody waiting for a caller that is no more
                logger.exception("A fault of ours in a limiter's call; it goes on")
                self._retry_at = self._loop.time() + RETRY_S
        # A limiter that never spoke has nothing to take leave of. The first call may be one that had no answer.
        for _ in range(1 + (self._pending is not None)):
            if self._has_spoken:
                await self._call()

    async def _until_due(self) -> None:
        # uvloop counts milliseconds: what is due within one would be waited for by turning round and round.
        while (due := self._due()) > self._loop.time() + EARLY_S:
            self._sleeps_until = due
            timer = self._loop.call_at(due, self._wake.set) if due < math.inf else None
            await self._wake.wait()
            self._wake.clear()
            self._sleeps_until = -math.inf
            if timer is not None:
                timer.cancel()

    def _due(self) -> float:
        if self.is_closing:
            return -math.inf
        if self._pending is not None:
            return self._retry_at
        if self._report is not None:
            return max(self._retry_at, self.called_at)
        return max(self._retry_at, self._leases.calls_at())

    async def _call(self) -> None:
        # A call without an answer is made again as it was: the schedule knows whether it has done it.
        ask = self._pending = self._pending or self._next_ask()
        self.called_at = asked_at = self._loop.time()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                grant = await self.schedule.acquire(ask)
        except AWAY as error:
            self._miss(error)
            return
        self._pending = None
        self._has_spoken = True
        self._reach()
        self._leases.hear(grant, ask, asked_at=asked_at)

    def _next_ask(self) -> Ask:
        self._seq += 1
        return self._leases.ask(self._seq, leaves=self.is_closing)

    async def _tell_pause(self) -> None:
        report, self._report = self._report, None
        if report is None:
            return
        self.called_at = asked_at = self._loop.time()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                pause = await self.schedule.pause(report)
        except AWAY as error:
            self._report = _joined(report, self._report)
            self._miss(error)
            return
        self._leases.hear_pause(pause, asked_at=asked_at)

    def _miss(self, error: Exception) -> None:
        now = self._loop.time()
        self._retry_at = now + RETRY_S
        if not self.is_away:
            self.is_away, self._away_since = True, now
            self._outage.begin(self._leases, error)
        self._outage.go_without(self._leases)

    def _reach(self) -> None:
        if self.is_away:
            self.is_away = False
            self._outage.end(self._leases, self._loop.time() - self._away_since)


def _joined(first: PauseReport | None, second: PauseReport | None) -> PauseReport | None:
    """Two 429s of one moment, reported as one: the longer wait, the newer epoch."""
    if first is None or second is None:
        return first or second
    asked = [each.asked_s for each in (first, second) if each.asked_s is not None]
    return PauseReport(
        epoch=max(first.epoch, second.epoch),
        asked_s=max(asked, default=None),
        alone_s=second.alone_s,
        went_free=max(first.went_free, second.went_free),
    )
