"""One limit in one process: who waits is sent at the instants of the slots that are leased.

Slots are instants on the monotonic clock. When one comes, the waiter whose turn it is goes; a slot that could not be
used in time is void, or a loop that stalled would send a burst. All of it runs on one event loop, without locks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .caller import CALL_TIMEOUT_S, LEAST_GAP_S, RETRY_S, Caller
from .clock import ScheduleClock
from .cost import UNKNOWN, Cost
from .degraded import LocalPace, WhenAway
from .dispatch import MOST_DIFFERENT_COSTS, Dispatcher
from .forecast import Forecast
from .headers import rate_headers, wait_s
from .line import Line, Waiter
from .pauses import Pauses
from .permit import Permit
from .schedule import LONGEST_HORIZON_S, Ask, Grant, Pause, PauseReport
from .slots import EARLY_S, Slot, Slots
from .tally import Tally
from .told import ToldLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .cost import TokenUsage
    from .estimate import Estimator
    from .headers import ToldLimit
    from .line import Priority
    from .rate import Plan
    from .schedule import Schedule

__all__ = ["Limiter", "LimiterOptions", "Moved"]

logger = logging.getLogger("promptmill.limiter")

LEASE_S = 12.0
DEAF_HORIZON_S = 0.5
"""Leases are this short while pauses are not heard by the channel: they would be heard with the next reply only."""

TOKENS_HORIZON_S = 0.7
"""Settlement brings tokens back all the time; what is leased far ahead was leased by estimates alone."""

WINDOW_HORIZON_S = 0.4
"""Where windows of tokens are remembered, each slot leased is one more call whose length nobody knows."""

FLUSH_S = 0.1
IDLE_FLUSH_S = 2.0
FREE_REPORT_S = 1.0
RENEW_S = 4.0
MOST_COSTS = 256
_LEAD_S = (0.010, 0.050)
_DEFAULT_PAUSE_S = 1.0

ALONE_S = 1.0
"""How long the first request to a model without known limits is alone at most: its answer may tell them."""


class Moved(Exception):
    """The waiter may find another key free."""


@dataclass(frozen=True, slots=True)
class LimiterOptions:
    """What all limiters of a process share. `process` is unique to the process's run."""

    process: str
    when_away: WhenAway = "degraded"
    degraded_for_s: float = 60.0


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
        line: Line | None = None,
        hears_pauses: Callable[[], bool] = lambda: True,
        on_told: Callable[[Mapping[ToldLimit, int]], None] = lambda told: None,
    ) -> None:
        """`now`: epoch seconds, as deadlines are told. `hears_pauses`: whether the channel of pauses works.

        `on_told` is called when other limits were told than before; it answers with `replan`.
        """
        self.plan = plan
        self.tally = Tally()
        self._options = options
        self._estimator = estimator
        self._hears_pauses = hears_pauses
        self._on_told = on_told
        self._loop = asyncio.get_running_loop()
        self._clock = ScheduleClock()
        self._line = Line() if line is None else line
        self._slots = Slots(self._loop, self._dispatch)
        self._pauses = Pauses()
        self._forecast = Forecast(self._line, self._pauses, estimator, now=now, time=self._loop.time)
        self._dispatcher = Dispatcher(self._line, self._forecast, self.tally, issue=self._permit)
        self._told = ToldLimits()
        self._in_flight = 0
        self._opened_at = self._loop.time()
        self._has_answer = False
        self._alone_until: float | None = None
        self._last: Grant | None = None
        self._sold_ahead_s = 0.0
        self._asked_for: list[Waiter] = []
        self._ask_at = -math.inf
        self._local: LocalPace | None = None
        self._caller = Caller(schedule, self, self._loop)

    # ---- for the registry

    async def admit(self, waiter: Waiter) -> Permit:
        """Wait for a turn. Raises `NotAdmitted` and `Moved`; a cancelled wait gives everything back."""
        if (permit := self.admit_free(waiter.cost)) is not None:
            return permit
        if waiter.until_s is not None or waiter.park_after_s is not None:
            self._forecast.check(waiter, wait_s=self.expected_wait_s(waiter.priority), gap_s=self._gap_s())
        waiter.cost = self.plan.within(waiter.cost)
        waiter.units = self.plan.unit_s(waiter.cost) or 1.0
        self._line.join(waiter)
        self._caller.nudge(self._asks_at())
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            self._dispatcher.abandon(waiter)
            raise

    def admit_free(self, cost: Cost) -> Permit | None:
        """The permit, if nothing is limited and nobody waits; else None, and `admit` is the way."""
        if not self._goes_free():
            return None
        instant = self._instant()
        self.tally.charge(cost, instant)
        self._caller.nudge(self._caller.called_at + FREE_REPORT_S)
        return self._permit(cost, instant)

    def expected_wait_s(self, priority: Priority = "normal") -> float:
        """About how long a request that came now would wait."""
        if self._goes_free():
            return self._pauses.left_s(self._loop.time())
        return self._forecast.wait_s(priority, turn_s=self._turn_s())

    def waiting_of(self, tenant: str, priority: Priority) -> int:
        """How many of the tenant's requests of this priority wait here."""
        return self._line.waiting_of(tenant, priority)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def is_away(self) -> bool:
        """Whether the schedule could not be reached at the last call."""
        return self._caller.is_away

    @property
    def idle_since(self) -> float:
        """Since when (monotonic) nobody has used it and Redis knows all of it; infinity while it is in use."""
        is_used = self._in_flight or self._line or self._slots or self._told.is_open or self._caller.is_busy
        if is_used or self.tally.went_free or self.tally.unsaid_since < math.inf:
            return math.inf
        return max(self._opened_at, self._caller.called_at)

    def overhear_pause(self, epoch: int, left_s: float) -> None:
        """The channel tells of a 429 that some process has met."""
        self._note_pause(epoch, self._loop.time() + left_s if left_s > 0 else -math.inf)

    def listen_again(self) -> None:
        """The channel was deaf for a while: ask what was said."""
        if self._last is not None and (self._slots or self.tally.went_free or self._line):
            self._ask_at = -math.inf
            self._caller.nudge(self._loop.time())

    def replan(self, plan: Plan, schedule: Schedule) -> None:
        """Other limits from now on. Slots that are out stay good; waiters larger than a window become that window."""
        self.plan = plan
        self._caller.schedule = schedule
        for waiter in list(self._line):
            waiter.cost = plan.within(waiter.cost)
        self._caller.nudge(self._asks_at())

    async def close(self) -> None:
        """Give back what is unused and what ended, leave the schedule, and let nobody wait any longer."""
        for waiter in list(self._line):
            waiter.answer.cancel()
        unused = list(self._slots.drain())
        self.tally.returned = [slot.instant for slot in unused if not slot.is_local]
        for slot in unused:
            self._dispatcher.void(slot)
        try:
            await self._caller.close()
        except TimeoutError:
            logger.warning("Redis did not hear that this process leaves; what it holds returns in %g s", LEASE_S)

    # ---- for permits

    def settle(self, permit: Permit, usage: TokenUsage | None) -> None:
        """See `Permit.settle`."""
        self._in_flight -= 1
        if usage is not None:
            usage = self.plan.taken(usage)
        self.tally.settle(permit.cost, usage, permit.instant)
        if usage is not None and permit.cost is UNKNOWN:
            self._estimator.overhear(usage)
        elif usage is not None:
            self._estimator.learn(permit.cost, usage)
        self._note_answer()
        self._tell_soon()

    def give_up(self, permit: Permit) -> None:
        """See `Permit.give_up`."""
        self._in_flight -= 1
        self._tell_soon()

    def give_back(self, permit: Permit) -> None:
        """See `Permit.give_back`."""
        self._in_flight -= 1
        self.tally.refund(permit.cost, permit.instant)
        self._note_answer()
        self._tell_soon()

    def rate_limited(self, permit: Permit, asked_s: float | None, headers: Mapping[str, str]) -> None:
        """See `Permit.rate_limited`."""
        if asked_s is None:
            asked_s = wait_s(headers)
        until = self._loop.time() + (_DEFAULT_PAUSE_S if asked_s is None else asked_s)
        if self._pauses.covers(permit.epoch, until):
            return
        # Nothing may leave while Redis hears of it.
        self._note_pause(self._pauses.epoch, until)
        self._caller.report(PauseReport(epoch=permit.epoch, asked_s=asked_s, went_free=self.tally.went_free))

    def observe(self, headers: Mapping[str, str]) -> None:
        """See `Permit.observe`."""
        if (found := rate_headers(headers)) and self._told.note(found):
            self._caller.nudge(self._tells_limits_at())

    # ---- waiting

    def _goes_free(self) -> bool:
        if not self.plan.is_free:
            return self.is_away and self._options.when_away == "open" and not self._is_paused()
        if self.is_away and self._last is None:
            return True
        if self._told.is_open and not self.is_away:
            return False  # an answer has just told a limit
        if not self._has_answer and self._must_wait_for_the_first():
            return False
        return self._last is not None and not self._last.is_capped and not self._is_paused() and not self._line

    def _must_wait_for_the_first(self) -> bool:
        return self._alone_until is not None and self._loop.time() < self._alone_until

    def _let_free_go(self) -> None:
        """Nothing is limited, as far as anybody knows."""
        if self._last is None or self._last.is_capped or not self.plan.is_free or self._is_paused():
            return
        if self._has_answer:
            self._dispatcher.let_all_go(self._instant())
        elif self._alone_until is None:
            self._dispatcher.let_one_go(self._instant())
        elif not self._must_wait_for_the_first():
            self._dispatcher.let_all_go(self._instant())

    def _note_answer(self) -> None:
        if not self._has_answer:
            self._has_answer = True
            if not self._told.is_open:  # else when the schedule has answered
                self._let_free_go()

    def _is_paused(self) -> bool:
        return self._loop.time() < self._pauses.until

    def _turn_s(self) -> float:
        return self._forecast.turn_s(self.plan, live=self._live)

    def _gap_s(self) -> float:
        return self._forecast.gap_s(self.plan, live=self._live)

    @property
    def _live(self) -> int:
        return self._last.live if self._last else 1

    def _eject(self) -> None:
        """After news of a long wait: who would rather wait elsewhere, goes."""
        wait_s = self._pauses.left_s(self._loop.time())
        for waiter in list(self._line):
            if waiter.movable:
                self._dispatcher.dismiss(waiter, Moved())
            elif waiter.park_after_s is not None and wait_s > waiter.park_after_s:
                far = self._forecast.parked(wait_s, waiter.park_after_s, gap_s=self._gap_s())
                self._dispatcher.dismiss(waiter, far)

    # ---- dispatch

    def _dispatch(self) -> None:
        now = self._loop.time()
        self._dispatcher.dispatch(self._slots.due(now), self.plan, now=now)
        self._slots.arm()
        self._caller.nudge(self._asks_at())

    def _permit(self, cost: Cost, instant: float | None) -> Permit:
        self._in_flight += 1
        if not self._has_answer and self._alone_until is None and self.plan.is_free:
            self._alone_until = self._loop.time() + ALONE_S
            self._loop.call_at(self._alone_until, self._let_free_go)
        return Permit(self, cost, epoch=self._pauses.epoch, instant=instant)

    def _instant(self) -> float | None:
        """Now, in the schedule's time, if that was ever heard."""
        return None if self._last is None else self._clock.instant(self._loop.time())

    def _note_pause(self, epoch: int, until: float) -> None:
        news = self._pauses.note(epoch, until)
        if news == "known":
            return
        for slot in self._slots.drain():
            self._dispatcher.void(slot)
        if news == "longer":
            self._eject()
        self._ask_at = min(self._ask_at, self._loop.time() + RENEW_S)
        self._caller.nudge(self._asks_at())

    # ---- when to call

    def calls_at(self) -> float:
        """See `Client`."""
        due = min(self._asks_at(), self._tells_limits_at(), self.tally.unsaid_since + self._flush_s())
        if self.tally.went_free:
            due = min(due, self._caller.called_at + FREE_REPORT_S)
        if self._in_flight and self.plan.max_in_flight is not None:
            due = min(due, self._caller.called_at + RENEW_S)
        return due

    def _asks_at(self) -> float:
        if self._backlog() <= 0:
            return math.inf
        return max(self._ask_at, self._caller.called_at + LEAST_GAP_S)

    def _tells_limits_at(self) -> float:
        return self._caller.called_at + LEAST_GAP_S if self._told.is_urgent else math.inf

    def _tell_soon(self) -> None:
        """Something was settled."""
        if self._last is not None and self._last.reason == "calls" and self._line:
            self._ask_at = -math.inf
            self._caller.nudge(self._asks_at())
        else:
            self.tally.unsaid_since = min(self.tally.unsaid_since, self._loop.time())
            self._caller.nudge(self.tally.unsaid_since + self._flush_s())

    def _flush_s(self) -> float:
        """How soon Redis must hear of it. Where nobody waits for it, it is for those who look at the figures."""
        others_wait = self.plan.counts_tokens or self.plan.max_in_flight is not None
        return FLUSH_S if others_wait else IDLE_FLUSH_S

    def _backlog(self) -> int:
        return len(self._line) - len(self._slots)

    def _next_ask_at(self, grant: Grant, now: float, *, rtt_s: float) -> float:
        if grant.reason == "limits":
            return now
        if self._slots:
            lead_s = min(max(3 * rtt_s, _LEAD_S[0]), _LEAD_S[1])
            return self._slots.last_due - lead_s
        match grant.reason:
            case "done":
                return min(max(self._pauses.until, now + LEAST_GAP_S), now + RENEW_S)
            case "calls":
                return now + grant.wait_s
            case "fair":
                sleep_s = grant.wait_s - grant.horizon_s / 4
            case _:
                sleep_s = grant.wait_s - grant.horizon_s / 2
        return now + min(max(sleep_s, grant.horizon_s / 8, 0.02), RENEW_S)

    # ---- what is said and heard

    def ask(self, seq: int, *, leaves: bool) -> Ask:
        """See `Client`."""
        costs, self._asked_for = ([], []) if leaves else self._wanted()
        said = self.tally.say()
        return Ask(
            process=self._options.process,
            seq=seq,
            backlog=0 if leaves else max(0, self._backlog()),
            held=self._in_flight + len(self._slots),
            costs=costs,
            refunds=list(said.refunds.values()),
            settled=said.settled,
            reserved_tokens=said.reserved_tokens,
            used_tokens=said.used_tokens,
            went_free=said.went_free,
            unsent=said.unsent,
            headers=self._told.say(),
            epoch=self._pauses.epoch if self._last is not None else 0,
            leaves=leaves,
            returned=said.returned,
            beyond_tokens=self._estimator.beyond_tokens(costs),
            longest_horizon_s=self._longest_horizon_s(),
            lease_s=LEASE_S,
        )

    def _wanted(self) -> tuple[Sequence[Cost], list[Waiter]]:
        """What to ask for, and for whom; nobody in particular where all cost the same."""
        is_free = self.plan.is_free and not (self._last is not None and self._last.is_capped)
        missing = 0 if is_free else max(0, self._backlog())
        if not self.plan.counts_tokens:
            return [Cost()] * min(missing, MOST_COSTS), []
        missing = min(missing, MOST_DIFFERENT_COSTS)
        upcoming = self._line.upcoming(missing + len(self._slots))
        owners = [waiter for waiter in upcoming if not waiter.has_slot][:missing]
        for waiter in owners:
            waiter.cost = self._estimator.renewed(waiter.cost)
        return [waiter.cost for waiter in owners], owners

    def _longest_horizon_s(self) -> float:
        if not self._hears_pauses():
            return DEAF_HORIZON_S
        if not self.plan.counts_tokens:
            return LONGEST_HORIZON_S
        return WINDOW_HORIZON_S if self.plan.remembers_tokens else TOKENS_HORIZON_S

    def hear(self, grant: Grant, ask: Ask, *, asked_at: float) -> None:
        """See `Client`."""
        now = self._loop.time()
        self._clock.learn(grant.now, asked_at=asked_at, heard_at=now)
        self._last = grant
        if ask.costs:
            self._sold_ahead_s = grant.sold_ahead_s
        self._note_pause(grant.epoch, self._clock.monotonic(grant.paused_until) if grant.paused_until else -math.inf)
        for position, instant in enumerate(grant.slots):
            owner = self._asked_for[position] if self._asked_for else None
            self._add_slot(instant, ask.costs[position], owner, grant.epoch)
        if self._told.hear(grant.told):
            self._on_told(self._told.limits)
        if grant.reason == "day":
            self._pauses.blocked_until = now + grant.wait_s
            self._eject()
        self._let_free_go()
        self._ask_at = self._next_ask_at(grant, now, rtt_s=now - asked_at)
        if not self._caller.is_closing:
            self._slots.arm()

    def _add_slot(self, instant: float, cost: Cost, owner: Waiter | None, epoch: int) -> None:
        slot = Slot(self._clock.monotonic(instant), instant, cost, owner)
        if epoch < self._pauses.epoch or slot.due < self._pauses.until - EARLY_S:
            self._dispatcher.void(slot)  # leased before the pause that this process knows of
        else:
            self._slots.add(slot)

    def hear_pause(self, pause: Pause, *, asked_at: float) -> None:
        """See `Client`."""
        self._clock.learn(pause.now, asked_at=asked_at, heard_at=self._loop.time())
        self._note_pause(pause.epoch, self._clock.monotonic(pause.until))

    # ---- without Redis

    def lose(self, error: Exception) -> None:
        """See `Client`."""
        self._local = self._local_pace()
        logger.warning(
            "Redis is away (%s): the limits are %s until it is back", type(error).__name__, self._options.when_away
        )

    def _local_pace(self) -> LocalPace | None:
        if self._options.when_away != "degraded" or self._last is None or not self.plan.dimensions:
            return None
        # What is leased is sent yet, by us and by the others; a share beside it would be too much. How far ahead they
        # have leased, nobody knows; about as far as when we last asked.
        begins = self._loop.time() + self._sold_ahead_s
        if self._slots:
            begins = max(begins, self._slots.last_due)
        return LocalPace.begin(
            self.plan, processes=self._last.processes, now=begins, for_s=self._options.degraded_for_s
        )

    def go_without(self) -> None:
        """See `Client`."""
        if self._options.when_away == "open" or self.plan.is_free:
            if not self._is_paused():
                self._dispatcher.let_all_go(self._instant())
        elif self._local is not None:
            self._lease_locally(self._local)

    def _lease_locally(self, pace: LocalPace) -> None:
        begins = max(self._loop.time(), self._pauses.until)
        waiters = [each for each in self._line.upcoming(self._backlog() + len(self._slots)) if not each.has_slot]
        horizon_s = CALL_TIMEOUT_S + 2 * RETRY_S
        instants = pace.lease((each.cost for each in waiters), now=begins, horizon_s=horizon_s)
        for waiter, at in zip(waiters, instants, strict=False):
            self._slots.add(Slot(at, self._clock.instant(at), waiter.cost, waiter, is_local=True))
        self._slots.arm()

    def find_again(self, away_s: float) -> None:
        """See `Client`."""
        logger.info("Redis is back after %.1f s: the limits are shared again", away_s)
        self._local = None
        self._slots.drop_local()
