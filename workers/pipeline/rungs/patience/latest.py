"""How long a model's latest calls took."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["LEARN_FROM", "MOST_MODELS", "STEP", "Latest"]

LEARN_FROM: Final = 50
"""Calls, before anything is concluded: of fewer, what 95 % took is chance."""

KEPT: Final = 200
LOOK_EVERY: Final = 10

STEP: Final = 1.1
"""Time-outs are powers of this, of some least one: the HTTP session has a timer for each that occurs
(http/timeouts.py)."""

MOST_MODELS: Final = 1_024


class Latest:
    """In seconds. What is concluded changes with every tenth call."""

    __slots__ = ("_noted", "_took", "longest_s", "noted_at", "p95_s")

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=KEPT)
        self._noted = 0
        self.noted_at = 0.0
        """When the latest was noted, on the caller's clock."""
        self.p95_s: float | None = None
        """What 95 % of them took; None as long as too few are known."""
        self.longest_s = 0.0
        """Of those that `p95_s` is of."""

    def note(self, took_s: float, *, now: float = 0.0) -> bool:
        """A call was answered after so long, or given up; whether something was concluded."""
        self._took.append(took_s)
        self._noted += 1
        self.noted_at = now
        if self._noted < LEARN_FROM or self._noted % LOOK_EVERY:
            return False
        took = sorted(self._took)
        self.p95_s, self.longest_s = took[math.ceil(0.95 * len(took)) - 1], took[-1]
        return True
