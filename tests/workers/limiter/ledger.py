"""What was granted, and the bound that it has to keep. Plain Python, and nothing of the code under test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

ROUNDING_S = 1e-4
"""The scripts tell microseconds; a thousand slots may add up their roundings."""


@dataclass
class Ledger:
    """Granted amounts by their instants."""

    entries: list[tuple[float, float]] = field(default_factory=list)

    def add(self, instants: Iterable[float], amount: float = 1.0) -> None:
        self.entries.extend((instant, amount) for instant in instants)

    def worst_excess(self, *, rate_per_s: float, burst: float) -> float:
        """By how much any window, however long, holds more than rate * length + burst. At most 0 is good.

        With S(t) the sum up to t, a window (s, t] is worst when it begins just before an entry and ends at one, so
        one pass with the least value of `S - rate * t` before each entry finds the worst of all.
        """
        total, least, worst = 0.0, float("inf"), float("-inf")
        for instant, amount in sorted(self.entries):
            least = min(least, total - rate_per_s * instant)
            total += amount
            worst = max(worst, total - rate_per_s * (instant + ROUNDING_S) - least - burst)
        return worst

    def most_in_window(self, length_s: float) -> float:
        """The most that lies in any half-open window of this length."""
        return max((sum_ for _, sum_ in self.windows(length_s)), default=0.0)

    def windows(self, length_s: float) -> Iterator[tuple[float, float]]:
        """For each entry the half-open window that ends with it: its end, and what lies in it."""
        entries = sorted(self.entries)
        sum_, first = 0.0, 0
        for instant, amount in entries:
            sum_ += amount
            while entries[first][0] <= instant - length_s + ROUNDING_S:
                sum_ -= entries[first][1]
                first += 1
            yield instant, sum_
