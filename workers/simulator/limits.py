"""Strict limits on requests and tokens per minute. Time is an argument; nothing here does I/O.

The three algorithms differ in what they let through at once:

- `bucket` fills continuously and holds one second's worth of requests (or `burst`) and six seconds' worth of
  tokens, because tokens come a whole call at a time;
- `sliding` counts what was let through in the 60 s before each call;
- `fixed` counts from one boundary to the next, so twice the limit passes around a boundary.

A refused call costs nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = [
    "ALGORITHMS",
    "WINDOW_S",
    "Algorithm",
    "Allowance",
    "Bucket",
    "Dimension",
    "FixedWindow",
    "Meter",
    "Refusal",
    "SlidingLog",
    "reset_text",
]

Algorithm = Literal["bucket", "sliding", "fixed"]
ALGORITHMS: tuple[Algorithm, ...] = ("bucket", "sliding", "fixed")
Dimension = Literal["requests", "tokens"]

WINDOW_S = 60.0
_REQUEST_BUCKET_S = 1.0
_TOKEN_BUCKET_S = 6.0
# A caller that waits exactly as long as it was told must not be refused for the last bit of a float.
_ROUNDING = 1e-9


class Meter(Protocol):
    """One limited quantity of one key and model. Times are seconds on any clock that never goes back."""

    limit: int

    def wait_s(self, now_s: float, cost: int) -> float:
        """Seconds until `cost` fits: 0 if it does now, infinity if it never will."""

    def take(self, now_s: float, cost: int) -> None:
        """Count `cost`; only after `wait_s` has said 0."""

    def remaining(self, now_s: float) -> int:
        """How much fits at once now."""

    def reset_s(self, now_s: float) -> float:
        """Seconds until all of it is free again."""


class Bucket:
    """A bucket of `capacity` that refills with `limit` a minute and is full at first.

    A cost above the capacity, but not above the limit, passes when the bucket is full and leaves a debt: the
    rate holds, and a long prompt is not shut out by a small bucket.
    """

    def __init__(self, limit: int, *, capacity: float) -> None:
        self.limit = limit
        self.capacity = capacity
        self._per_s = limit / WINDOW_S
        self._level = capacity
        self._at_s = -math.inf

    def wait_s(self, now_s: float, cost: int) -> float:
        if cost > max(self.limit, self.capacity):
            return math.inf
        missing = min(cost, self.capacity) - self._level_at(now_s)
        return missing / self._per_s if missing > _ROUNDING else 0.0

    def take(self, now_s: float, cost: int) -> None:
        self._level = self._level_at(now_s) - cost
        self._at_s = now_s

    def remaining(self, now_s: float) -> int:
        return max(0, int(self._level_at(now_s) + _ROUNDING))

    def reset_s(self, now_s: float) -> float:
        return (self.capacity - self._level_at(now_s)) / self._per_s

    def _level_at(self, now_s: float) -> float:
        return min(self.capacity, self._level + (now_s - self._at_s) * self._per_s)


class SlidingLog:
    """At most `limit` in any 60 s, counted to the instant. Memory: one entry for each call of the last minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._log: deque[tuple[float, int]] = deque()
        self._used = 0

    def wait_s(self, now_s: float, cost: int) -> float:
        self._forget(now_s)
        if cost > self.limit:
            return math.inf
        excess = self._used + cost - self.limit
        for leaves_at_s, amount in self._log:
            if excess <= 0:
                break
            excess -= amount
            if excess <= 0:
                return leaves_at_s - now_s
        return 0.0

    def take(self, now_s: float, cost: int) -> None:
        self._log.append((now_s + WINDOW_S, cost))
        self._used += cost

    def remaining(self, now_s: float) -> int:
        self._forget(now_s)
        return self.limit - self._used

    def reset_s(self, now_s: float) -> float:
        self._forget(now_s)
        return self._log[-1][0] - now_s if self._log else 0.0

    def _forget(self, now_s: float) -> None:
        while self._log and self._log[0][0] <= now_s:
            self._used -= self._log.popleft()[1]


class FixedWindow:
    """At most `limit` between two boundaries, which lie at `phase_s` + n * 60 s."""

    def __init__(self, limit: int, *, phase_s: float = 0.0) -> None:
        self.limit = limit
        self._phase_s = phase_s
        self._window = -1
        self._used = 0

    def wait_s(self, now_s: float, cost: int) -> float:
        self._turn(now_s)
        if cost > self.limit:
            return math.inf
        return 0.0 if self._used + cost <= self.limit else self._left_s(now_s)

    def take(self, now_s: float, cost: int) -> None:
        self._turn(now_s)
        self._used += cost

    def remaining(self, now_s: float) -> int:
        self._turn(now_s)
        return self.limit - self._used

    def reset_s(self, now_s: float) -> float:
        self._turn(now_s)
        return self._left_s(now_s) if self._used else 0.0

    def _turn(self, now_s: float) -> None:
        window = math.floor((now_s - self._phase_s) / WINDOW_S)
        if window != self._window:
            self._window, self._used = window, 0

    def _left_s(self, now_s: float) -> float:
        return self._phase_s + (self._window + 1) * WINDOW_S - now_s


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call over the limit. `wait_s` is infinite where the call alone is larger than the limit."""

    dimension: Dimension
    limit: int
    remaining: int
    cost: int
    wait_s: float


class Allowance:
    """What one key may send to one model: requests and tokens, each limited or not."""

    def __init__(self, *, requests: Meter | None = None, tokens: Meter | None = None) -> None:
        meters: tuple[tuple[Dimension, Meter | None], ...] = (("requests", requests), ("tokens", tokens))
        self.meters = [(name, meter) for name, meter in meters if meter is not None]

    @classmethod
    def of(
        cls, *, algorithm: Algorithm, rpm: int | None, tpm: int | None, burst: int | None = None, phase_s: float = 0.0
    ) -> Allowance:
        """Limits per minute, None = unlimited. `burst` sizes the bucket of requests, `phase_s` the fixed windows."""
        return cls(
            requests=_meter(algorithm, rpm, bucket_s=_REQUEST_BUCKET_S, burst=burst, phase_s=phase_s),
            tokens=_meter(algorithm, tpm, bucket_s=_TOKEN_BUCKET_S, burst=None, phase_s=phase_s),
        )

    def admit(self, now_s: float, *, tokens: int) -> Refusal | None:
        """Count one request of `tokens`, or say what stands against it; the longest wait if both do."""
        costs: dict[Dimension, int] = {"requests": 1, "tokens": tokens}
        waits = [(meter.wait_s(now_s, costs[name]), name, meter) for name, meter in self.meters]
        wait_s, name, meter = max(waits, key=lambda wait: wait[0], default=(0.0, None, None))
        if wait_s > 0 and name is not None and meter is not None:
            return Refusal(name, meter.limit, meter.remaining(now_s), costs[name], wait_s)
        for name, meter in self.meters:
            meter.take(now_s, costs[name])
        return None

    def headers(self, now_s: float) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers, as they stand after the call."""
        headers: dict[str, str] = {}
        for name, meter in self.meters:
            headers[f"x-ratelimit-limit-{name}"] = str(meter.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(meter.remaining(now_s))
            headers[f"x-ratelimit-reset-{name}"] = reset_text(meter.reset_s(now_s))
        return headers


def reset_text(duration_s: float) -> str:
    """A duration as OpenAI writes it, `120ms`, `1.5s` or `6m0s`, rounded up to the millisecond."""
    duration_ms = max(0, math.ceil(duration_s * 1000 - _ROUNDING))
    if duration_ms < 1000:
        return f"{duration_ms}ms"
    minutes, rest_ms = divmod(duration_ms, 60_000)
    seconds = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds


def _meter(
    algorithm: Algorithm, limit: int | None, *, bucket_s: float, burst: int | None, phase_s: float
) -> Meter | None:
    if limit is None:
        return None
    match algorithm:
        case "bucket":
            return Bucket(limit, capacity=burst or max(1.0, limit / WINDOW_S * bucket_s))
        case "sliding":
            return SlidingLog(limit)
        case "fixed":
            return FixedWindow(limit, phase_s=phase_s)
