"""Percentiles of a stream of durations, in constant memory."""

from __future__ import annotations

import math
from collections import Counter

__all__ = ["LatencyHistogram"]

GROWTH = 1.015
"""Each bucket is 1.5 % wider than the one before, and its middle is at most 0.75 % off any value in it."""

SMALLEST_S = 1e-6
LARGEST_S = 1e6


class LatencyHistogram:
    """Counts durations in seconds in buckets that grow by a constant factor (at most 1,857 of them)."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._total = 0

    def add(self, duration_s: float) -> None:
        self._counts[_bucket(duration_s)] += 1
        self._total += 1

    def percentile_s(self, share: float) -> float | None:
        """The duration that `share` (0..1) of all do not exceed, within 1 %; None before the first."""
        rank = max(1, math.ceil(share * self._total))
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return _middle_s(bucket)
        return None


def _bucket(duration_s: float) -> int:
    bounded_s = min(max(duration_s, SMALLEST_S), LARGEST_S)
    return math.floor(math.log(bounded_s / SMALLEST_S, GROWTH))


def _middle_s(bucket: int) -> float:
    return SMALLEST_S * math.pow(GROWTH, bucket + 0.5)
