"""How long a request would wait for one limiter, and what it is told where that is too long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .cost import Cost
from .errors import MustPark, TooLate

if TYPE_CHECKING:
    from collections.abc import Callable

    from .line import Line, Priority, Waiter
    from .pauses import Pauses
    from .rate import Plan

__all__ = ["Forecast"]

_MOST_PARKED_S = 300.0
_LEARNING = 0.1
_FORGET_S = 10.0


class Forecast:
    """By the plan's pace, or by the turns that were seen where they came more slowly."""

    def __init__(self, line: Line, pauses: Pauses, *, now: Callable[[], float], time: Callable[[], float]) -> None:
        """`now`: epoch seconds, as deadlines are told. `time`: the monotonic clock, as pauses are."""
        self._line = line
        self._pauses = pauses
        self._now = now
        self._time = time
        self._interval_s = 0.0
        self._turn_at = -math.inf
        self._next_return_at = -math.inf

    def note_turn(self, at: float, *, is_last: bool) -> None:
        """Somebody is sent. After the last in the line, the distance of the next turn tells nothing."""
        if self._turn_at > at - _FORGET_S:
            self._interval_s += _LEARNING * (at - self._turn_at - self._interval_s)
        self._turn_at = -math.inf if is_last else at

    def turn_s(self, plan: Plan, *, live: int) -> float:
        """About how long one turn of this process takes, beside `live` processes that wait, itself included."""
        first = self._line.first() if plan.counts_tokens else None
        return max(live * plan.unit_s(first.cost if first else Cost()), self._interval_s)

    def wait_s(self, priority: Priority, *, turn_s: float) -> float:
        """About how long a request that came now would wait."""
        return self._pauses.left_s(self._time()) + self._line.ahead_of(priority) * turn_s

    def check(self, waiter: Waiter, *, wait_s: float, turn_s: float) -> None:
        """Raises `TooLate` or `MustPark` where the wait is more than the waiter can take."""
        if waiter.until_s is not None and self._now() + wait_s > waiter.until_s:
            raise TooLate("the job's deadline passes before the provider's limits let it be sent")
        if waiter.park_after_s is not None and wait_s > waiter.park_after_s:
            raise self.parked(wait_s, waiter.park_after_s, turn_s=turn_s)

    def is_too_late(self, waiter: Waiter) -> bool:
        return waiter.until_s is not None and self._now() >= waiter.until_s

    def parked(self, wait_s: float, park_after_s: float, *, turn_s: float) -> MustPark:
        """Parked jobs come back one by one at the limit's pace, a little early, so that the line never dries."""
        now = self._time()
        at = max(now + wait_s, self._next_return_at)
        if at > now + _MOST_PARKED_S:
            at = now + _MOST_PARKED_S / 2
        self._next_return_at = at + turn_s
        paused_s = self._pauses.until - now
        back_in_s = max(at - now - park_after_s / 2, park_after_s / 2, paused_s)
        reason = "the provider has asked for a pause" if paused_s > 0 else "the limit is used up for now"
        return MustPark(self._now() + back_in_s, reason=f"{reason}; the next slot is about {wait_s:.0f} s away")
