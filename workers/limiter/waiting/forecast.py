"""How long a request would wait for one limiter, and the reason that it gets where that is too long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...prompt.parked import Parked
from ..cost import Cost
from ..errors import TooLate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.wire.vocabulary import Priority

    from ..estimate import Estimator
    from ..heard.pauses import Pauses
    from ..rate import Plan
    from .wait_queue import Waiter, WaitQueue

__all__ = ["Forecast"]

_MOST_PARKED_S = 300.0
_LEARNING = 0.1
_FORGET_S = 10.0

_RETURN_SHARE = 0.75
"""A parked job comes back after this share of its wait. What is foretold of a minute from now is often wrong: who comes
too early is sent away again, which costs little, but a queue that has run dry leaves the limit unused."""


class Forecast:
    """By the plan's pace, or by the turns that were seen where they came more slowly."""

    def __init__(
        self,
        queue: WaitQueue[Waiter],
        pauses: Pauses,
        estimator: Estimator,
        *,
        now: Callable[[], float],
        time: Callable[[], float],
    ) -> None:
        """`now`: epoch seconds, as deadlines are given. `time`: the monotonic clock, as pauses are."""
        self._queue = queue
        self._pauses = pauses
        self._estimator = estimator
        self._now = now
        self._time = time
        self._interval_s = 0.0
        self._turn_at = -math.inf
        self._next_return_at = -math.inf

    def note_turn(self, at: float, *, is_last: bool) -> None:
        """Somebody is sent. After the last in the queue, the distance of the next turn means nothing."""
        if self._turn_at > at - _FORGET_S:
            self._interval_s += _LEARNING * (at - self._turn_at - self._interval_s)
        self._turn_at = -math.inf if is_last else at

    def turn_s(self, plan: Plan, *, live: int) -> float:
        """About how long one turn of this process takes, beside `live` processes that wait, itself included."""
        by_plan_s = live * self._unit_s(plan)
        # Where tokens are limited, the first turns are as far apart as the first reservations are large.
        is_guess = plan.counts_tokens and self._estimator.is_cold
        return by_plan_s if is_guess else max(by_plan_s, self._interval_s)

    def gap_s(self, plan: Plan, *, live: int) -> float:
        """How far apart parked jobs come back: as if no other process parked any.

        One process may have parked them all. Where each has its part they come back too early, but never more often
        than so; where they came back too late, the limit would stay unused.
        """
        return _RETURN_SHARE * (self._unit_s(plan) or self._interval_s / live)

    def _unit_s(self, plan: Plan) -> float:
        if not plan.counts_tokens:
            return plan.unit_s(Cost())
        first = self._queue.first()
        return 0.0 if first is None else plan.unit_s(self._estimator.typical(first.cost))

    def wait_s(self, priority: Priority, *, turn_s: float) -> float:
        """About how long a request that came now would wait."""
        return self._pauses.left_s(self._time()) + self._queue.ahead_of(priority) * turn_s

    def check(self, waiter: Waiter, *, wait_s: float, gap_s: float) -> None:
        """Raises `TooLate` or `Parked` where the wait is more than the waiter can take."""
        if waiter.until_s is not None and self._now() + wait_s > waiter.until_s:
            raise TooLate("the job's deadline passes before the provider's limits let it be sent")
        if waiter.park_after_s is not None and wait_s > waiter.park_after_s:
            raise self.parked(wait_s, waiter.park_after_s, gap_s=gap_s)

    def is_too_late(self, waiter: Waiter) -> bool:
        return waiter.until_s is not None and self._now() >= waiter.until_s

    def parked(self, wait_s: float, park_after_s: float, *, gap_s: float) -> Parked:
        """Parked jobs come back one by one, before their turns, so that the queue never runs dry."""
        now = self._time()
        paused_s = self._pauses.until - now
        soonest_s = min(max(_RETURN_SHARE * wait_s - park_after_s / 2, park_after_s / 2), _MOST_PARKED_S / 2)
        soonest_at = now + max(soonest_s, paused_s)
        back_at = max(soonest_at, self._next_return_at)
        if back_at > max(now + _MOST_PARKED_S, soonest_at):
            back_at = soonest_at
        self._next_return_at = back_at + gap_s
        reason = "the provider has asked for a pause" if paused_s > 0 else "the limit is used up for now"
        return Parked(
            self._now() + back_at - now,
            f"{reason}; the next slot is about {wait_s:.0f} s away",
            gap_s=gap_s,
        )
