"""One limit in one process: who waits for it, and what becomes of those that were sent.

Slots are instants on the monotonic clock. When one comes, the waiter whose turn it is goes; a slot that could not be
used in time is void, or a loop that stalled would send a burst. All of it runs on one event loop, without locks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cost import UNKNOWN, Cost
from .heard.headers import HeaderReader, rate_headers, wait_s
from .heard.pauses import Pauses
from .leasing.degraded import WhenAway
from .leasing.leases import LEASE_S, Leases
from .leasing.outage import Outage
from .leasing.settlements import Settlements
from .permit import Permit
from .shared.schedule import PauseReport
from .waiting.dispatch import Dispatcher
from .waiting.forecast import Forecast
from .waiting.free_flow import FreeFlow
from .waiting.wait_queue import Waiter, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tasks.wire.vocabulary import Priority

    from .cost import TokenUsage
    from .estimate import Estimator
    from .heard.headers import LearnedLimit
    from .rate import Plan
    from .shared.schedule import Schedule

__all__ = ["Limiter", "LimiterOptions"]

logger = logging.getLogger("promptmill.limiter")

_DEFAULT_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class LimiterOptions:
    """What all limiters of a process share. `process` is unique to the process's run.

    A single answer pauses a key for `longest_alone_s` at most, whatever it asks for; a second one may confirm it.
    """

    process: str
    when_away: WhenAway = "degraded"
    degraded_for_s: float = 60.0
    longest_alone_s: float = 60.0


class Limiter:
    """One key's limit for one model, as this process sees it. Used on one running event loop."""

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        *,
        options: LimiterOptions,
        estimator: Estimator,
        now: Callable[[], float],
        queue: WaitQueue[Waiter] | None = None,
        hears_pauses: Callable[[], bool] = lambda: True,
        on_learned: Callable[[Mapping[LearnedLimit, int]], None] = lambda limits: None,
        on_pause: Callable[[float], None] = lambda left_s: None,
    ) -> None:
        """`now`: epoch seconds, as deadlines are given. `hears_pauses`: whether the channel of pauses works.

        `on_learned` is called when answers state other limits than before; it answers with `replan`. `on_pause` is
        called with the seconds that are left of a new or longer pause.
        """
        self.settlements = Settlements()
        self._estimator = estimator
        self._now = now
        self._headers = HeaderReader(now)
        self._longest_alone_s = options.longest_alone_s
        self._loop = loop = asyncio.get_running_loop()
        self._opened_at = loop.time()
        self._queue = queue = WaitQueue() if queue is None else queue
        self._pauses = pauses = Pauses()
        self._forecast = Forecast(queue, pauses, estimator, now=now, time=loop.time)
        self._dispatcher = dispatcher = Dispatcher(queue, self._forecast, self.settlements, issue=self._permit)
        outage = Outage(
            options.when_away, options.degraded_for_s, queue=queue, pauses=pauses, dispatcher=dispatcher, loop=loop
        )
        self._leases = Leases(
            plan,
            schedule,
            process=options.process,
            queue=queue,
            settlements=self.settlements,
            pauses=pauses,
            estimator=estimator,
            dispatcher=dispatcher,
            outage=outage,
            loop=loop,
            hears_pauses=hears_pauses,
            on_learned=on_learned,
            on_pause=on_pause,
            on_answer=self._let_free_go,
        )
        self._free = FreeFlow(self._leases, outage, queue=queue, pauses=pauses, dispatcher=dispatcher, loop=loop)

    # ---- for the registry

    @property
    def plan(self) -> Plan:
        return self._leases.plan

    async def admit(self, waiter: Waiter) -> Permit:
        """Wait for a turn. Raises `NotAdmitted` and `Moved`; a cancelled wait gives everything back."""
        if (permit := self.admit_free(waiter.cost)) is not None:
            return permit
        if waiter.until_s is not None or waiter.park_after_s is not None:
            gap_s = self._forecast.gap_s(self.plan, live=self._leases.live)
            self._forecast.check(waiter, wait_s=self.expected_wait_s(waiter.priority), gap_s=gap_s)
        waiter.cost = self.plan.within(waiter.cost)
        waiter.units = self.plan.unit_s(waiter.cost) or 1.0
        self._queue.join(waiter)
        self._leases.ask_soon()
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            self._dispatcher.abandon(waiter)
            raise

    def admit_free(self, cost: Cost) -> Permit | None:
        """The permit, if nothing is limited and nobody waits; else None, and `admit` is the way."""
        if not self._free.admits():
            return None
        instant = self._leases.instant()
        self.settlements.charge(cost, instant)
        self._leases.note_free()
        return self._permit(cost, instant)

    def expected_wait_s(self, priority: Priority = "normal") -> float:
        """About how long a request that came now would wait."""
        if self._free.admits():
            return self._pauses.left_s(self._loop.time())
        turn_s = self._forecast.turn_s(self.plan, live=self._leases.live)
        return self._forecast.wait_s(priority, turn_s=turn_s)

    def waiting_of(self, tenant: str, priority: Priority) -> int:
        """How many of the tenant's requests of this priority wait here."""
        return self._queue.waiting_of(tenant, priority)

    @property
    def in_flight(self) -> int:
        return self.settlements.in_flight

    @property
    def is_away(self) -> bool:
        """Whether the schedule could not be reached at the last call."""
        return self._leases.caller.is_away

    @property
    def idle_since(self) -> float:
        """Since when (monotonic) nobody has used it and Redis knows all of it; infinity while it is in use."""
        leases = self._leases
        is_used = self.in_flight or self._queue or leases.slots or leases.learned.is_open or leases.caller.is_busy
        if is_used or self.settlements.went_free or self.settlements.unsaid_since < math.inf:
            return math.inf
        return max(self._opened_at, leases.caller.called_at)

    def overhear_pause(self, epoch: int, left_s: float) -> None:
        """The channel reports a 429 that some process has met."""
        self._leases.note_pause(epoch, self._loop.time() + left_s if left_s > 0 else -math.inf)

    def listen_again(self) -> None:
        """The channel was deaf for a while: ask what was said."""
        if self._leases.grant is not None and (self._leases.slots or self.settlements.went_free or self._queue):
            self._leases.ask_now()

    def replan(self, plan: Plan, schedule: Schedule) -> None:
        """Other limits from now on. Slots that are out stay good; waiters larger than a window become that window."""
        for waiter in list(self._queue):
            waiter.cost = plan.within(waiter.cost)
        self._leases.replan(plan, schedule)

    async def close(self) -> None:
        """Give back what is unused and what ended, leave the schedule, and let nobody wait any longer."""
        for waiter in list(self._queue):
            waiter.answer.cancel()
        try:
            await self._leases.close()
        except TimeoutError:
            logger.warning("Redis did not hear that this process leaves; what it holds returns in %g s", LEASE_S)

    # ---- for permits

    def settle(self, permit: Permit, usage: TokenUsage | None) -> None:
        """See `Permit.settle`."""
        if usage is not None:
            usage = self._leases.plan.taken(usage)
        self.settlements.settle(permit.cost, usage, permit.instant)
        if usage is not None and permit.cost is UNKNOWN:
            self._estimator.overhear(usage)
        elif usage is not None:
            self._estimator.learn(permit.cost, usage)
        self._end(has_answer=True)

    def resize(self, permit: Permit, cost: Cost) -> None:
        """See `Permit.resize`."""
        self.settlements.adjust(permit.cost, cost, permit.instant)

    def give_up(self, permit: Permit) -> None:
        """See `Permit.give_up`."""
        self._end(has_answer=False)

    def give_back(self, permit: Permit) -> None:
        """See `Permit.give_back`."""
        self.settlements.refund(permit.cost, permit.instant)
        self._end(has_answer=True)

    def rate_limited(self, permit: Permit, asked_s: float | None, headers: Mapping[str, str]) -> float | None:
        """See `Permit.rate_limited`."""
        if asked_s is None:
            asked_s = wait_s(headers, self._now())
        alone_s = self._longest_alone_s
        until = self._loop.time() + (_DEFAULT_PAUSE_S if asked_s is None else min(asked_s, alone_s))
        if not self._pauses.covers(permit.epoch, until):
            report = PauseReport(
                epoch=permit.epoch, asked_s=asked_s, alone_s=alone_s, went_free=self.settlements.went_free
            )
            self._leases.report_pause(report, until)
        return asked_s

    def observe(self, headers: Mapping[str, str]) -> None:
        """See `Permit.observe`."""
        if found := self._headers.read(headers):
            self._leases.note_headers(found)

    def has_limits(self, headers: Mapping[str, str]) -> bool:
        """Whether the headers tell a limit."""
        return bool(rate_headers(headers, self._now()))

    def _permit(self, cost: Cost, instant: float | None) -> Permit:
        self.settlements.in_flight += 1
        self._free.note_sent()
        return Permit(self, cost, self._pauses.epoch, instant)

    def _let_free_go(self) -> None:
        self._free.let_go()

    def _end(self, *, has_answer: bool) -> None:
        self.settlements.in_flight -= 1
        if has_answer:
            self._free.note_answer()
        self._leases.note_settled()
