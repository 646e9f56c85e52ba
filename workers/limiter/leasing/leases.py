"""What one process leases of a limit: when it asks the schedule for more slots, what it reports, and what it hears."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..cost import Cost
from ..heard.learned import LearnedLimits
from ..shared.clock import ScheduleClock
from ..shared.schedule import LONGEST_HORIZON_S, Ask, Grant, Pause, PauseReport
from ..waiting.dispatch import MOST_DIFFERENT_COSTS
from .caller import LEAST_GAP_S, Caller
from .slots import EARLY_S, Slot, Slots

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from ..estimate import Estimator
    from ..heard.headers import LearnedLimit, RateHeader
    from ..heard.pauses import Pauses
    from ..rate import Plan
    from ..shared.schedule import Schedule
    from ..waiting.dispatch import Dispatcher
    from ..waiting.wait_queue import Waiter, WaitQueue
    from .outage import Outage
    from .settlements import Settlements

__all__ = ["LEASE_S", "Leases"]

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
_SAME_PAUSE_S = 1.0
"""Heard again, by another way, a pause ends a moment later."""

_LEAD_S = (0.010, 0.050)


class Leases:
    """The slots that are out, and the conversation with the schedule that leases them. `Caller` speaks for it."""

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        *,
        process: str,
        queue: WaitQueue[Waiter],
        settlements: Settlements,
        pauses: Pauses,
        estimator: Estimator,
        dispatcher: Dispatcher,
        outage: Outage,
        loop: asyncio.AbstractEventLoop,
        hears_pauses: Callable[[], bool],
        on_learned: Callable[[Mapping[LearnedLimit, int]], None],
        on_pause: Callable[[float], None],
        on_answer: Callable[[], None],
    ) -> None:
        """`on_pause` is called with the seconds that are left of a new or longer pause; `on_answer` when the schedule
        has answered, before it is decided when it is asked again."""
        self.plan = plan
        self.slots = Slots(loop, self._dispatch)
        self.learned = LearnedLimits()
        self.grant: Grant | None = None
        """The schedule's latest answer."""

        self.sold_ahead_s = 0.0
        self._process = process
        self._queue = queue
        self._settlements = settlements
        self._pauses = pauses
        self._estimator = estimator
        self._dispatcher = dispatcher
        self._loop = loop
        self._hears_pauses = hears_pauses
        self._on_learned = on_learned
        self._on_pause = on_pause
        self._on_answer = on_answer
        self._clock = ScheduleClock()
        self._asked_for: list[Waiter] = []
        self._ask_at = -math.inf
        self.caller = Caller(schedule, self, outage, loop)

    # ---- for the limiter

    @property
    def backlog(self) -> int:
        """Waiters without a slot."""
        return len(self._queue) - len(self.slots)

    @property
    def live(self) -> int:
        """The processes that wait for this limit, this one included, as far as it knows."""
        return self.grant.live if self.grant else 1

    def instant(self, monotonic: float | None = None) -> float | None:
        """`monotonic`, or now, in the schedule's time, if that was ever heard."""
        at = self._loop.time() if monotonic is None else monotonic
        return None if self.grant is None else self._clock.instant(at)

    def ask_soon(self) -> None:
        """Somebody waits."""
        self.caller.nudge(self._asks_at())

    def ask_now(self) -> None:
        """What was heard last holds no more."""
        self._ask_at = -math.inf
        self.caller.nudge(self._loop.time())

    def note_free(self) -> None:
        """A request went without a slot."""
        self.caller.nudge(self.caller.called_at + FREE_REPORT_S)

    def note_settled(self) -> None:
        """Something was settled: tell it soon, at once if a slot waits for it."""
        if self.grant is not None and self.grant.reason == "calls" and self._queue:
            self._ask_at = -math.inf
            self.caller.nudge(self._asks_at())
        elif self._settlements.unsaid_since == math.inf:  # the next ones are told with it
            self._settlements.unsaid_since = self._loop.time()
            self.caller.nudge(self._settlements.unsaid_since + _flush_s(self.plan))

    def note_headers(self, headers: Sequence[RateHeader]) -> None:
        """An answer came with these."""
        if self.learned.note(headers):
            self.caller.nudge(self._tells_limits_at())

    def note_pause(self, epoch: int, until: float) -> None:
        """What is leased is void from that epoch on. `until` is monotonic; minus infinity where nothing was asked."""
        known_until, news = self._pauses.until, self._pauses.note(epoch, until)
        if news == "known":
            return
        for slot in self.slots.drain():
            self._dispatcher.void(slot)
        if news == "longer":
            if until > known_until + _SAME_PAUSE_S:
                self._on_pause(until - self._loop.time())
            self._eject()
        self._ask_at = min(self._ask_at, self._loop.time() + RENEW_S)
        self.ask_soon()

    def report_pause(self, report: PauseReport, until: float) -> None:
        """A 429 to a request of this process. Nothing may leave while Redis hears of it."""
        self.note_pause(self._pauses.epoch, until)
        self.caller.report(report)

    def replan(self, plan: Plan, schedule: Schedule) -> None:
        """Other limits from now on. Slots that are out stay good."""
        self.plan = plan
        self.caller.schedule = schedule
        self.ask_soon()

    async def close(self) -> None:
        """Give back what is unused. Raises `TimeoutError` if Redis does not hear of it."""
        unused = list(self.slots.drain())
        self._settlements.returned = [slot.instant for slot in unused if not slot.is_local]
        for slot in unused:
            self._dispatcher.void(slot)
        await self.caller.close()

    def _dispatch(self) -> None:
        now = self._loop.time()
        self._dispatcher.dispatch(self.slots.due(now), self.plan, now=now)
        self.slots.arm()
        self.ask_soon()

    def _eject(self) -> None:
        self._dispatcher.eject(wait_s=self._pauses.left_s(self._loop.time()), plan=self.plan, live=self.live)

    # ---- when to call

    def calls_at(self) -> float:
        """When (monotonic) the next call is wanted."""
        settlements, called_at = self._settlements, self.caller.called_at
        due = min(self._asks_at(), self._tells_limits_at(), settlements.unsaid_since + _flush_s(self.plan))
        if settlements.went_free:
            due = min(due, called_at + FREE_REPORT_S)
        if settlements.in_flight and self.plan.max_in_flight is not None:
            due = min(due, called_at + RENEW_S)
        return due

    def _asks_at(self) -> float:
        if self.backlog <= 0:
            return math.inf
        return max(self._ask_at, self.caller.called_at + LEAST_GAP_S)

    def _tells_limits_at(self) -> float:
        return self.caller.called_at + LEAST_GAP_S if self.learned.is_urgent else math.inf

    # ---- what is said and heard

    def ask(self, seq: int, *, leaves: bool) -> Ask:
        """What there is to say and to ask for now; it counts as said."""
        costs, self._asked_for = ([], []) if leaves else self._wanted()
        said = self._settlements.say()
        return Ask(
            process=self._process,
            seq=seq,
            backlog=0 if leaves else max(0, self.backlog),
            held=self._settlements.in_flight + len(self.slots),
            costs=costs,
            refunds=list(said.refunds.values()),
            settled=said.settled,
            reserved_tokens=said.reserved_tokens,
            used_tokens=said.used_tokens,
            went_free=said.went_free,
            unsent=said.unsent,
            headers=self.learned.say(),
            epoch=self._pauses.epoch if self.grant is not None else 0,
            leaves=leaves,
            returned=said.returned,
            beyond_tokens=self._estimator.beyond_tokens(costs),
            longest_horizon_s=_longest_horizon_s(self.plan, hears_pauses=self._hears_pauses()),
            lease_s=LEASE_S,
        )

    def _wanted(self) -> tuple[Sequence[Cost], list[Waiter]]:
        """What to ask for, and for whom; nobody in particular where all cost the same."""
        is_free = self.plan.is_free and not (self.grant is not None and self.grant.is_capped)
        missing = 0 if is_free else max(0, self.backlog)
        if not self.plan.counts_tokens:
            return [Cost()] * min(missing, MOST_COSTS), []
        missing = min(missing, MOST_DIFFERENT_COSTS)
        upcoming = self._queue.upcoming(missing + len(self.slots))
        owners = [waiter for waiter in upcoming if not waiter.has_slot][:missing]
        for waiter in owners:
            grows = waiter.grows
            waiter.cost = self._estimator.renewed(waiter.cost) if grows is None else self.plan.within(grows(waiter))
        return [waiter.cost for waiter in owners], owners

    def hear(self, grant: Grant, ask: Ask, *, asked_at: float) -> None:
        """The schedule's answer to `ask`, which was called for at `asked_at` (monotonic)."""
        now = self._loop.time()
        self._clock.learn(grant.now, asked_at=asked_at, heard_at=now)
        self.grant = grant
        if ask.costs:
            self.sold_ahead_s = grant.sold_ahead_s
        self.note_pause(grant.epoch, self._clock.monotonic(grant.paused_until) if grant.paused_until else -math.inf)
        for position, instant in enumerate(grant.slots):
            owner = self._asked_for[position] if self._asked_for else None
            self._add_slot(instant, ask.costs[position], owner, grant.epoch)
        if self.learned.hear(grant.learned):
            self._on_learned(self.learned.limits)
        if grant.reason == "day":
            self._pauses.blocked_until = now + grant.wait_s
            self._eject()
        self._on_answer()
        self._ask_at = self._next_ask_at(grant, now, rtt_s=now - asked_at)
        if not self.caller.is_closing:
            self.slots.arm()

    def _add_slot(self, instant: float, cost: Cost, owner: Waiter | None, epoch: int) -> None:
        slot = Slot(self._clock.monotonic(instant), instant, cost, owner)
        if epoch < self._pauses.epoch or slot.due < self._pauses.until - EARLY_S:
            self._dispatcher.void(slot)  # leased before the pause that this process knows of
        else:
            self.slots.add(slot)

    def hear_pause(self, pause: Pause, *, asked_at: float) -> None:
        """The schedule's answer to a pause that was reported at `asked_at` (monotonic)."""
        self._clock.learn(pause.now, asked_at=asked_at, heard_at=self._loop.time())
        self.note_pause(pause.epoch, self._clock.monotonic(pause.until))

    def _next_ask_at(self, grant: Grant, now: float, *, rtt_s: float) -> float:
        if self.slots and grant.reason != "limits":
            lead_s = min(max(3 * rtt_s, _LEAD_S[0]), _LEAD_S[1])
            return self.slots.last_due - lead_s
        return now + _sleep_s(grant, paused_s=self._pauses.until - now)


def _sleep_s(grant: Grant, *, paused_s: float) -> float:
    """How long to wait before the schedule is asked again, where it has sold nothing."""
    match grant.reason:
        case "limits":
            return 0.0
        case "done":
            return min(max(paused_s, LEAST_GAP_S), RENEW_S)
        case "calls":
            return grant.wait_s
        case "fair":
            sleep_s = grant.wait_s - grant.horizon_s / 4
        case _:
            sleep_s = grant.wait_s - grant.horizon_s / 2
    return min(max(sleep_s, grant.horizon_s / 8, 0.02), RENEW_S)


def _flush_s(plan: Plan) -> float:
    """How soon Redis must hear of it. Where nobody waits for it, it is for those who look at the figures."""
    others_wait = plan.counts_tokens or plan.max_in_flight is not None
    return FLUSH_S if others_wait else IDLE_FLUSH_S


def _longest_horizon_s(plan: Plan, *, hears_pauses: bool) -> float:
    if not hears_pauses:
        return DEAF_HORIZON_S
    if not plan.counts_tokens:
        return LONGEST_HORIZON_S
    return WINDOW_HORIZON_S if plan.remembers_tokens else TOKENS_HORIZON_S
