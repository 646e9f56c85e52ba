"""Whether inputs come in a stream, or now and then."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Flow"]

WINDOW_S: Final = 5.0


class Flow:
    """How many inputs have come of late, and when the latest did. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.came_at = -math.inf
        self._window = 0
        self._counts = (0, 0)

    def note(self, inputs: int, now: float) -> None:
        """So many come."""
        self.came_at = now
        before, this = self._of(now)
        self._window, self._counts = int(now // WINDOW_S), (before, this + inputs)

    def recent(self, now: float) -> int:
        """How many have come within the last 5 to 10 seconds."""
        return sum(self._of(now))

    def _of(self, now: float) -> tuple[int, int]:
        windows = int(now // WINDOW_S) - self._window
        if windows == 0:
            return self._counts
        return (self._counts[1], 0) if windows == 1 else (0, 0)
