"""Redis's time on this process's monotonic clock."""

from __future__ import annotations

import math

__all__ = ["ScheduleClock"]

_DRIFT = 1e-4
"""Two clocks of computers part by less than this share of the time that passes."""


class ScheduleClock:
    """Tells when an instant of the schedule comes, by the monotonic clock: late by half a round trip, never early.

    A reply that carries Redis's time was written between the call and the reply, so each one bounds the difference of
    the two clocks from both sides. The narrowest bounds are kept: a slow reply, or one that was read late because the
    process was stopped, moves nothing. Bounds that contradict the kept ones mean that a clock was set; they win.
    """

    def __init__(self) -> None:
        self._at = 0.0
        self._low, self._high = -math.inf, math.inf

    def learn(self, schedule_now: float, *, asked_at: float, heard_at: float) -> None:
        """Take in the schedule's time, written between these two instants of the monotonic clock."""
        low, high = asked_at - schedule_now, heard_at - schedule_now
        slack = _DRIFT * max(0.0, heard_at - self._at)
        kept_low, kept_high = max(low, self._low - slack), min(high, self._high + slack)
        self._low, self._high = (kept_low, kept_high) if kept_low <= kept_high else (low, high)
        self._at = heard_at

    def monotonic(self, instant: float) -> float:
        """The schedule's `instant` by the monotonic clock."""
        return instant + self._high

    def instant(self, monotonic: float) -> float:
        """The schedule's time at `monotonic`."""
        return monotonic - self._high
