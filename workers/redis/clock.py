"""Redis's clock, as a worker process knows it: one estimate for its broker and its pipeline.

Redis's clock decides what is due and whose lease has ended. Somebody may set it, and after a failover it is another
one; a job's deadline must not come earlier or later by that. So a worker measures time by its own steady clock, follows
Redis's clock where that runs steadily, and remembers by how much it has been set.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from tasks.redis.clock import steady_s

__all__ = ["RedisClock", "redis_clock"]

JUMP_S: Final = 1.0
"""Two readings that contradict each other by more than this mean that Redis's clock was set."""

DRIFT: Final = 1e-3
"""Two clocks part by less than this share of the time that passes, even while NTP slews one of them."""

STALE_S: Final = 30.0
"""How long a client that has not heard of it stamps jobs by the clock as it was (tasks/store/terms.py)."""

MOST_JUMPS: Final = 16


class _Jump(NamedTuple):
    """Redis's clock was set when it showed `at`, by so many seconds."""

    at: float
    by: float


class _State(NamedTuple):
    redis_ahead: float
    """Redis's clock minus the steady clock, s."""
    jumps: tuple[_Jump, ...] = ()
    jumped: float = 0.0
    """The sum of all jumps."""


class RedisClock:
    """Epoch seconds that run on steadily while Redis's clock is set. Thread-safe.

    Until Redis has been heard, it is the wall clock of the start. It agrees with Redis's clock until that is set for
    the first time; `from_redis` and `to_redis` lead from one to the other.
    """

    def __init__(self, *, steady: Callable[[], float] = steady_s, wall: Callable[[], float] = time.time) -> None:
        self._steady = steady
        self._lock = threading.Lock()
        # What readings have left open of the difference of the two clocks, and when the last was taken.
        self._low, self._high, self._at = -math.inf, math.inf, 0.0
        self._state = _State(wall() - steady())
        self._ahead = self._state.redis_ahead

    def __call__(self) -> float:
        return self._steady() + self._ahead

    def redis_s(self) -> float:
        """What Redis's clock shows now."""
        return self._steady() + self._state.redis_ahead

    def asked(self) -> float:
        """The instant to pass to `learn`; take it before Redis is asked."""
        return self._steady()

    def learn(self, redis_s: float, *, asked_at: float) -> None:
        """Take in what Redis's clock showed at some time between `asked_at` and now."""
        heard_at = self._steady()
        low, high = redis_s - heard_at, redis_s - asked_at
        with self._lock:
            slack = DRIFT * max(0.0, heard_at - self._at)
            kept_low, kept_high = max(low, self._low - slack), min(high, self._high + slack)
            jumps, jumped = self._state.jumps, self._state.jumped
            if kept_low > kept_high:
                before, kept_low, kept_high = self._state.redis_ahead, low, high
                by = (low + high) / 2 - before
                if max(low - self._high, self._low - high) > JUMP_S:
                    jumps = (*jumps, _Jump(heard_at + before, by))[-MOST_JUMPS:]
                    jumped += by
            self._low, self._high, self._at = kept_low, kept_high, heard_at
            self._state = _State((kept_low + kept_high) / 2, jumps, jumped)
            self._ahead = self._state.redis_ahead - jumped

    def from_redis(self, stamp: float) -> float:
        """The instant at which Redis's clock, of then, gave this stamp; never in the future.

        After a clock was set back, its last stamps before and its first ones after are the same; they count as later
        ones, so that no job is thought older than it is.
        """
        state, now = self._state, self()
        if not state.jumps:
            return stamp if stamp < now else now
        if state.jumps[-1].at + state.jumps[-1].by - JUMP_S <= stamp <= now + state.jumped + JUMP_S:
            return min(stamp - state.jumped, now)
        # Of all times between two jumps in which Redis's clock may have shown it, the latest.
        possible, jumped = [], state.jumped
        began = [-math.inf, *(jump.at + jump.by for jump in state.jumps[:-1])]
        for jump, start in zip(reversed(state.jumps), reversed(began), strict=True):
            jumped -= jump.by
            if start - JUMP_S <= stamp <= jump.at + STALE_S:
                possible.append(stamp - jumped)
        return min(max(possible, default=now), now)

    def to_redis(self, instant: float) -> float:
        """What Redis's clock shows at this instant, unless it is set before."""
        return instant + self._state.jumped


redis_clock: Final = RedisClock()
"""This process's."""
