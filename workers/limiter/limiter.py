"""One limit in one process: who waits, which slots are leased, and the one caller that speaks to the schedule.

Slots are instants on the monotonic clock. When one comes, the waiter whose turn it is goes; a slot that could not be
used in time is void, or a loop that stalled would send a burst. All of it runs on one event loop, without locks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from .clock import ScheduleClock
from .cost import Cost
from .degraded import LocalPace, WhenAway
from .errors import MustPark, TooLate
from .headers import rate_headers
from .headers import wait_s as wait_s_of
from .line import Line, Waiter
from .permit import Permit
from .schedule import Ask, Grant, PauseReport
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .cost import TokenUsage
    from .estimate import Estimator
    from .headers import RateHeader
    from .line import Priority
    from .rate import Plan
    from .schedule import Schedule

__all__ = ["Limiter", "LimiterOptions", "Moved"]

logger = logging.getLogger("promptmill.limiter")

CALL_TIMEOUT_S = 1.0
LEASE_S = 12.0
LONGEST_HORIZON_S = 4.0
DEAF_HORIZON_S = 0.5
"""Leases are this short while pauses are not heard by the channel: they would be heard with the next reply only."""

TOKENS_HORIZON_S = 1.5
"""Settlement brings tokens back all the time; what is leased far ahead was leased by estimates alone."""

LEAST_GAP_S = 0.005
"""Between two calls, so that arrivals of one moment share a call."""

FLUSH_S = 0.25
IDLE_FLUSH_S = 2.0
FREE_REPORT_S = 1.0
RENEW_S = 4.0
RETRY_S = 0.25
MOST_COSTS = 256
MOST_DIFFERENT_COSTS = 64
_EARLY_S = 0.001
_LEAD_S = (0.010, 0.050)
_MOST_PARKED_S = 300.0
_DEFAULT_PAUSE_S = 1.0


class Moved(Exception):
    """The waiter may find another key free."""


@dataclass(frozen=True, slots=True)
class LimiterOptions:
    """What all limiters of a process share. `process` is unique to the process's run."""

    process: str
    when_away: WhenAway = "degraded"
    degraded_for_s: float = 60.0


@dataclass(slots=True, eq=False)
class _Slot:
    """Due at `due` (monotonic), `instant` in the schedule's time; None for one that was not leased from it."""

    due: float
    instant: float | None
    cost: Cost
    owner: Waiter | None = None


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
        on_headers: Callable[[list[RateHeader]], None] = lambda headers: None,
    ) -> None:
        """`now`: epoch seconds, as deadlines are told. `hears_pauses`: whether the channel of pauses works."""
        self.plan = plan
        self.tally = Tally()
        self._schedule = schedule
        self._options = options
        self._estimator = estimator
        self._now = now
        self._hears_pauses = hears_pauses
        self._on_headers = on_headers
        self._loop = asyncio.get_running_loop()
        self._clock = ScheduleClock()
        self._line = line or Line()
        self._slots: deque[_Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._wake = asyncio.Event()
        self._sleeps_until = -math.inf
        self._in_flight = 0
        self._seq = 0
        self._pending: tuple[Ask, list[Waiter]] | None = None
        self._report: PauseReport | None = None
        self._last: Grant | None = None
        self._called_at = -math.inf
        self._ask_at = -math.inf
        self._retry_at = -math.inf
        self._away_since: float | None = None
        self._local: LocalPace | None = None
        self._epoch = 0
        self._paused_until = -math.inf
        self._blocked_until = -math.inf
        self._park_next = -math.inf
        self._interval_s = 0.0
        self._sent_at = -math.inf
        self._headers: list[RateHeader] = []
        self._closing = False
        self._caller = self._loop.create_task(self._keep_calling())

    # ---- for the registry

    async def admit(self, waiter: Waiter) -> Permit:
        """Wait for a turn. Raises `MustPark`, `TooLate` and `Moved`; a cancelled wait gives everything back."""
        if self._goes_free():
            self.tally.went_free += 1
            self._nudge(self._called_at + FREE_REPORT_S)
            return self._permit(waiter.cost)
        self._check_wait(waiter)
        waiter.units = self.plan.unit_s(waiter.cost) or 1.0
        self._line.join(waiter)
        self._nudge(self._asks_at())
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise

    def expected_wait_s(self, priority: Priority = "normal") -> float:
        """About how long a request that came now would wait."""
        now = self._loop.time()
        blocked_s = max(0.0, self._paused_until - now, self._blocked_until - now)
        if self._goes_free():
            return blocked_s
        return blocked_s + self._line.ahead_of(priority) * self._pace_s()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def is_away(self) -> bool:
        """Whether the schedule could not be reached at the last call."""
        return self._away_since is not None

    def hear_pause(self, epoch: int, left_s: float) -> None:
        """The channel tells of a 429 that some process has met."""
        self._note_pause(epoch, self._loop.time() + left_s if left_s > 0 else -math.inf)

    def listen_again(self) -> None:
        """The channel was deaf for a while: ask what was said."""
        if self._last is not None and (self._slots or self.tally.went_free or len(self._line)):
            self._ask_at = -math.inf
            self._nudge(self._loop.time())

    def replan(self, plan: Plan, schedule: Schedule) -> None:
        """Other limits from now on; slots that are out stay good."""
        self.plan, self._schedule = plan, schedule
        self._nudge(self._asks_at())

    async def close(self) -> None:
        """Give back what is unused and what ended, leave the schedule, and let nobody wait any longer."""
        self._closing = True
        self._stop_timer()
        for waiter in list(self._line):
            waiter.answer.cancel()
        self.tally.returned = [slot.instant for slot in self._slots if slot.instant is not None]
        self._void_slots()
        self._wake.set()
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                await self._caller
        except TimeoutError:
            logger.warning("Redis did not hear that this process leaves; what it holds returns in %g s", LEASE_S)

    # ---- for permits

    def settle(self, permit: Permit, usage: TokenUsage | None) -> None:
        """See `Permit.settle`."""
        self._in_flight -= 1
        self.tally.settle(permit.cost, usage)
        if usage is not None:
            self._estimator.learn(permit.cost, usage)
        self._news()

    def give_back(self, permit: Permit) -> None:
        """See `Permit.give_back`."""
        self._in_flight -= 1
        self.tally.refund(permit.cost)
        self._news()

    def rate_limited(self, permit: Permit, asked_s: float | None, headers: Mapping[str, str]) -> None:
        """See `Permit.rate_limited`."""
        self.tally.refused += 1
        if asked_s is None:
            asked_s = wait_s_of(rate_headers(headers))
        until = self._loop.time() + (_DEFAULT_PAUSE_S if asked_s is None else asked_s)
        if permit.epoch < self._epoch and until <= self._paused_until + _EARLY_S:
            return  # sent before the pause that holds already, and asks for no more
        self._report = _joined(self._report, PauseReport(epoch=permit.epoch, asked_s=asked_s))
        # Nothing may leave while Redis hears of it.
        self._note_pause(self._epoch, until)
        self._nudge(self._loop.time())

    def observe(self, headers: Mapping[str, str]) -> None:
        """See `Permit.observe`."""
        if found := rate_headers(headers):
            self._headers = found
            self._on_headers(found)

    # ---- waiting

    def _goes_free(self) -> bool:
        if not self.plan.is_free:
            return self._is_open_now()
        if self.is_away and self._last is None:
            return True
        paused = self._loop.time() < self._paused_until
        return self._last is not None and not self._last.is_capped and not paused and not self._line

    def _is_open_now(self) -> bool:
        return self.is_away and self._options.when_away == "open" and self._loop.time() >= self._paused_until

    def _check_wait(self, waiter: Waiter) -> None:
        if waiter.until_s is None and waiter.park_after_s is None:
            return
        wait_s = self.expected_wait_s(waiter.priority)
        if waiter.until_s is not None and self._now() + wait_s > waiter.until_s:
            raise TooLate("the job's deadline passes before the provider's limits let it be sent")
        if waiter.park_after_s is not None and wait_s > waiter.park_after_s:
            raise self._parked(wait_s, waiter.park_after_s)

    def _parked(self, wait_s: float, park_after_s: float) -> MustPark:
        """Parked jobs come back one by one at the limit's pace, a little early, so that the line never dries."""
        now = self._loop.time()
        at = max(now + wait_s, self._park_next)
        if at > now + _MOST_PARKED_S:
            self._park_next = at = now + _MOST_PARKED_S / 2
        self._park_next = at + self._pace_s()
        back_in_s = max(at - now - park_after_s / 2, park_after_s / 2, self._paused_until - now)
        reason = "the provider has asked for a pause" if now < self._paused_until else "the limit is used up for now"
        return MustPark(self._now() + back_in_s, reason=f"{reason}; the next slot is about {wait_s:.0f} s away")

    def _pace_s(self) -> float:
        """About how long one turn of this process takes."""
        live = self._last.live if self._last else 1
        first = self._line.first() if self.plan.counts_tokens else None
        return max(live * self.plan.unit_s(first.cost if first else Cost()), self._interval_s)

    def _abandon(self, waiter: Waiter) -> None:
        if waiter.answer.done() and not waiter.answer.cancelled() and waiter.answer.exception() is None:
            waiter.answer.result().give_back()
        else:
            self._line.leave(waiter)

    def _eject(self) -> None:
        """After news of a long wait: who would rather wait elsewhere, goes."""
        wait_s = max(self._paused_until, self._blocked_until) - self._loop.time()
        for waiter in list(self._line):
            if waiter.movable:
                self._dismiss(waiter, Moved())
            elif waiter.park_after_s is not None and wait_s > waiter.park_after_s:
                self._dismiss(waiter, self._parked(wait_s, waiter.park_after_s))

    def _dismiss(self, waiter: Waiter, why: Exception) -> None:
        self._line.leave(waiter)
        if not waiter.answer.done():
            waiter.answer.set_exception(why)

    # ---- slots

    def _arm(self) -> None:
        if not self._slots or self._closing:
            return
        due = self._slots[0].due
        if self._timer is None or self._timer_due > due:
            self._stop_timer()
            # Kept beside the handle: uvloop's handle of a time that has come knows no `when`.
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._dispatch)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dispatch(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._slots and self._slots[0].due <= now + _EARLY_S:
            slot = self._slots.popleft()
            waiter = None
            if now > slot.due + self.plan.use_by_s:
                self.tally.stale += 1
            else:
                waiter = self._taker(slot)
            if waiter is None:
                self._void(slot)
            else:
                self._send(waiter, slot, now)
        self._arm()
        self._nudge(self._asks_at())

    def _taker(self, slot: _Slot) -> Waiter | None:
        """Whose turn it is, unless the slot is sized for one that needs much more."""
        first, owner = self._first(), slot.owner if slot.owner and not slot.owner.answer.done() else None
        if first is None or not self.plan.counts_tokens:
            return first
        if _fits(first, slot) and (owner is None or not _needs_much_more(owner, first)):
            return first
        return owner or next((each for each in self._line.upcoming(MOST_DIFFERENT_COSTS) if _fits(each, slot)), None)

    def _first(self) -> Waiter | None:
        while (first := self._line.first()) is not None:
            if first.answer.done():
                self._line.leave(first)
            elif first.until_s is not None and self._now() >= first.until_s:
                self._dismiss(first, TooLate("the job's deadline passed while it waited for the provider's limits"))
            else:
                return first
        return None

    def _send(self, waiter: Waiter, slot: _Slot, now: float) -> None:
        self._line.take(waiter)
        if slot.owner is not None:
            slot.owner.has_slot = False
        self.tally.adjust(slot.cost, waiter.cost)
        self.tally.granted += 1
        self._interval_s += 0.1 * (now - self._sent_at - self._interval_s) if self._sent_at > now - 10 else 0.0
        self._sent_at = now if self._line else -math.inf
        waiter.answer.set_result(self._permit(waiter.cost))

    def _permit(self, cost: Cost) -> Permit:
        self._in_flight += 1
        return Permit(self, cost, epoch=self._epoch)

    def _void(self, slot: _Slot) -> None:
        """The request's instant is lost, or it would be sold twice; its tokens are not."""
        if slot.owner is not None:
            slot.owner.has_slot = False
        if slot.instant is not None:
            self.tally.refund(slot.cost)

    def _void_slots(self) -> None:
        while self._slots:
            self._void(self._slots.popleft())

    # ---- pauses

    def _note_pause(self, epoch: int, until: float) -> None:
        if epoch <= self._epoch and until <= self._paused_until + _EARLY_S:
            return
        is_longer = until > self._paused_until + _EARLY_S
        self._epoch = max(epoch, self._epoch)
        self._void_slots()
        self._stop_timer()
        if is_longer:
            self._paused_until = until
            self._eject()
        self._ask_at = min(self._ask_at, self._loop.time() + RENEW_S)
        self._nudge(self._asks_at())

    # ---- the caller

    def _news(self) -> None:
        """Something was settled."""
        now = self._loop.time()
        if self._last is not None and self._last.reason == "calls" and self._line:
            self._ask_at = -math.inf
            self._nudge(self._asks_at())
        else:
            self.tally.unsaid_since = min(self.tally.unsaid_since, now)
            self._nudge(self.tally.unsaid_since + self._flush_s())

    def _flush_s(self) -> float:
        """How soon Redis must hear of it. Where nobody waits for it, it is for those who look at the figures."""
        others_wait = self.plan.counts_tokens or self.plan.max_in_flight is not None
        return FLUSH_S if others_wait else IDLE_FLUSH_S

    def _backlog(self) -> int:
        return len(self._line) - len(self._slots)

    def _asks_at(self) -> float:
        if self._backlog() <= 0:
            return math.inf
        return max(self._ask_at, self._called_at + LEAST_GAP_S)

    def _due(self) -> float:
        """When the next call is due, by the monotonic clock."""
        if self._closing:
            return -math.inf
        if self._pending is not None:
            return self._retry_at
        if self._report is not None:
            return max(self._retry_at, self._called_at)
        due = min(self._asks_at(), self.tally.unsaid_since + self._flush_s())
        if self.tally.went_free:
            due = min(due, self._called_at + FREE_REPORT_S)
        if self._in_flight and self.plan.max_in_flight is not None:
            due = min(due, self._called_at + RENEW_S)
        return due

    def _nudge(self, at: float) -> None:
        if at < self._sleeps_until:
            self._wake.set()

    async def _keep_calling(self) -> None:
        while not self._closing:
            await self._until_due()
            if self._closing:
                break
            try:
                await (self._tell_pause() if self._report is not None else self._call())
            except Exception:  # a fault of ours must not leave everybody waiting for a caller that is no more
                logger.exception("A fault of ours in a limiter's call; it goes on")
                self._retry_at = self._loop.time() + RETRY_S
                self._ask_at = max(self._ask_at, self._retry_at)
        # A limiter that never spoke has nothing to take leave of. The first call may be one that had no answer.
        for _ in range(1 + (self._pending is not None)):
            if self._last is not None:
                await self._call()

    async def _until_due(self) -> None:
        while (due := self._due()) > self._loop.time():
            self._sleeps_until = due
            timer = self._loop.call_at(due, self._wake.set) if due < math.inf else None
            await self._wake.wait()
            self._wake.clear()
            self._sleeps_until = -math.inf
            if timer is not None:
                timer.cancel()

    async def _call(self) -> None:
        # A call without an answer is made again as it was: the schedule knows whether it has done it.
        ask, owners = self._pending = self._pending or self._composed()
        self._called_at = asked_at = self._loop.time()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                grant = await self._schedule.acquire(ask)
        except (RedisError, OSError, TimeoutError) as error:
            self._go_without(error)
            return
        self._pending = None
        self._come_back()
        self._hear(grant, owners, ask, asked_at=asked_at)

    async def _tell_pause(self) -> None:
        report, self._report = self._report, None
        if report is None:
            return
        self._called_at = self._loop.time()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                pause = await self._schedule.pause(report)
        except (RedisError, OSError, TimeoutError) as error:
            self._report = _joined(report, self._report)
            self._go_without(error)
            return
        self._clock.learn(pause.now, asked_at=self._called_at, heard_at=self._loop.time())
        self._note_pause(pause.epoch, self._clock.monotonic(pause.until))

    def _composed(self) -> tuple[Ask, list[Waiter]]:
        costs, owners = self._wanted()
        self._seq += 1
        said = self.tally.say()
        ask = Ask(
            process=self._options.process,
            seq=self._seq,
            backlog=0 if self._closing else max(0, self._backlog()),
            held=self._in_flight + len(self._slots),
            costs=costs,
            refund_input=said.refund_input,
            refund_output=said.refund_output,
            settled=said.settled,
            reserved_tokens=said.reserved_tokens,
            used_tokens=said.used_tokens,
            went_free=said.went_free,
            headers=self._headers,
            epoch=self._epoch if self._last is not None else 0,
            leaves=self._closing,
            returned=said.returned,
            longest_horizon_s=self._longest_horizon_s(),
            lease_s=LEASE_S,
        )
        self._headers = []
        return ask, owners

    def _longest_horizon_s(self) -> float:
        if not self._hears_pauses():
            return DEAF_HORIZON_S
        return TOKENS_HORIZON_S if self.plan.counts_tokens else LONGEST_HORIZON_S

    def _wanted(self) -> tuple[Sequence[Cost], list[Waiter]]:
        """What to ask for, and for whom; nobody in particular where all cost the same."""
        is_free = self.plan.is_free and not (self._last is not None and self._last.is_capped)
        missing = 0 if self._closing or is_free else max(0, self._backlog())
        if not self.plan.counts_tokens:
            return [Cost()] * min(missing, MOST_COSTS), []
        missing = min(missing, MOST_DIFFERENT_COSTS)
        upcoming = self._line.upcoming(missing + len(self._slots))
        owners = [waiter for waiter in upcoming if not waiter.has_slot][:missing]
        return [waiter.cost for waiter in owners], owners

    def _hear(self, grant: Grant, owners: Sequence[Waiter], ask: Ask, *, asked_at: float) -> None:
        now = self._loop.time()
        self._clock.learn(grant.now, asked_at=asked_at, heard_at=now)
        self._last = grant
        self.tally.calls += 1
        paused_until = self._clock.monotonic(grant.paused_until) if grant.paused_until else -math.inf
        self._note_pause(grant.epoch, paused_until)
        for position, instant in enumerate(grant.slots):
            self._add_slot(instant, ask.costs[position], owners[position] if owners else None, grant.epoch)
        if grant.reason == "day":
            self._blocked_until = now + grant.wait_s
            self._eject()
        if self.plan.is_free and not grant.is_capped and self._paused_until <= now:
            self._let_all_go()
        self._ask_at = self._next_ask_at(grant, now, rtt_s=now - asked_at)
        self._arm()

    def _add_slot(self, instant: float, cost: Cost, owner: Waiter | None, epoch: int) -> None:
        slot = _Slot(self._clock.monotonic(instant), instant, cost, owner)
        if epoch < self._epoch or slot.due < self._paused_until - _EARLY_S:
            self._void(slot)  # leased before the pause that this process knows of
            return
        if owner is not None:
            owner.has_slot = True
        self._slots.append(slot)

    def _next_ask_at(self, grant: Grant, now: float, *, rtt_s: float) -> float:
        if self._slots:
            lead_s = min(max(3 * rtt_s, _LEAD_S[0]), _LEAD_S[1])
            return self._slots[-1].due - lead_s
        match grant.reason:
            case "done":
                return min(max(self._paused_until, now + LEAST_GAP_S), now + RENEW_S)
            case "calls":
                return now + grant.wait_s
            case "fair":
                sleep_s = grant.wait_s - grant.horizon_s / 4
            case _:
                sleep_s = grant.wait_s - grant.horizon_s / 2
        return now + min(max(sleep_s, grant.horizon_s / 8, 0.02), RENEW_S)

    def _let_all_go(self) -> None:
        """Nothing is limited."""
        while (waiter := self._first()) is not None:
            self._line.take(waiter)
            self.tally.went_free += 1
            waiter.answer.set_result(self._permit(waiter.cost))

    # ---- without Redis

    def _go_without(self, error: Exception) -> None:
        now = self._loop.time()
        self._retry_at = now + RETRY_S
        if self._away_since is None:
            self._away_since = now
            self._local = self._local_pace(now)
            logger.warning(
                "Redis is away (%s): the limits are %s until it is back", type(error).__name__, self._options.when_away
            )
        if self._options.when_away == "open" or self.plan.is_free:
            if now >= self._paused_until:
                self._let_all_go()
        elif self._local is not None:
            self._lease_locally(self._local, now)

    def _local_pace(self, now: float) -> LocalPace | None:
        if self._options.when_away != "degraded" or self._last is None or not self.plan.dimensions:
            return None
        return LocalPace.begin(self.plan, processes=self._last.processes, now=now, for_s=self._options.degraded_for_s)

    def _lease_locally(self, pace: LocalPace, now: float) -> None:
        begins = max(now, self._paused_until)
        waiters = [each for each in self._line.upcoming(self._backlog() + len(self._slots)) if not each.has_slot]
        horizon_s = CALL_TIMEOUT_S + 2 * RETRY_S
        instants = pace.lease((each.cost for each in waiters), now=begins, horizon_s=horizon_s)
        for waiter, at in zip(waiters, instants, strict=False):
            waiter.has_slot = True
            self._slots.append(_Slot(at, None, waiter.cost, waiter))
        self._arm()

    def _come_back(self) -> None:
        if self._away_since is None:
            return
        logger.info("Redis is back after %.1f s: the limits are shared again", self._loop.time() - self._away_since)
        self._away_since = self._local = None
        for slot in self._slots:
            if slot.owner is not None:
                slot.owner.has_slot = False
        self._slots = deque(slot for slot in self._slots if slot.instant is not None)


def _fits(waiter: Waiter, slot: _Slot) -> bool:
    return (
        waiter.cost.input_tokens <= slot.cost.input_tokens
        and waiter.cost.of("tokens") <= slot.cost.of("tokens")
        and waiter.cost.output_tokens <= slot.cost.output_tokens
    )


def _needs_much_more(owner: Waiter, other: Waiter) -> bool:
    return owner.cost.of("tokens") > 2 * other.cost.of("tokens")


def _joined(first: PauseReport | None, second: PauseReport | None) -> PauseReport | None:
    """Two 429s of one moment, told as one: the longer wait, the newer epoch."""
    if first is None or second is None:
        return first or second
    asked = [each.asked_s for each in (first, second) if each.asked_s is not None]
    return PauseReport(epoch=max(first.epoch, second.epoch), asked_s=max(asked, default=None))
