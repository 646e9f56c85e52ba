"""Whether inputs come so densely that a call which waits for them will soon be full."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["FILLS_S", "Density"]

FILLS_S: Final = 1.0
"""A call waits on if it will be full by then. Texts that come as densely as that wait for the worker's CPU anyway."""

_MEMORY_S: Final = 0.1


class Density:
    """How many inputs a second have come of late. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._score = 0.0
        self._at = 0.0

    def note(self, inputs: int, now: float) -> None:
        """So many come."""
        self._score = self._left(now) + inputs
        self._at = now

    def per_s(self, now: float) -> float:
        """The rate."""
        return self._left(now) / _MEMORY_S

    def _left(self, now: float) -> float:
        return self._score * math.exp((self._at - now) / _MEMORY_S) if self._score else 0.0
