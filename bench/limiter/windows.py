"""Sums over sliding windows, and fairness."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from workers.simulator.limits import WINDOW_S

__all__ = ["jain", "most_in_a_minute"]


def most_in_a_minute(entries: Iterable[tuple[float, int]]) -> int:
    """The most that lies in any window of a minute; entries are (instant in seconds, amount)."""
    window: deque[tuple[float, int]] = deque()
    most = sum_ = 0
    for at, amount in sorted(entries):
        window.append((at, amount))
        sum_ += amount
        while window[0][0] <= at - WINDOW_S:
            sum_ -= window.popleft()[1]
        most = max(most, sum_)
    return most


def jain(counts: Iterable[int]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1/n when one has all."""
    values = list(counts)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0
