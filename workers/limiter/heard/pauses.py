"""When nobody may send: since which 429, and until when. No clock and no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..leasing.slots import EARLY_S

__all__ = ["Pauses"]


@dataclass(slots=True)
class Pauses:
    """What this process knows. Instants are of the monotonic clock; slots of an older `epoch` are void.

    `blocked_until` is no provider's pause: the day's requests are used up.
    """

    epoch: int = 0
    until: float = -math.inf
    blocked_until: float = -math.inf

    def note(self, epoch: int, until: float) -> Literal["known", "new", "longer"]:
        """Take in what was heard; a pause is only ever made longer."""
        is_longer = until > self.until + EARLY_S
        if epoch <= self.epoch and not is_longer:
            return "known"
        self.epoch = max(epoch, self.epoch)
        if not is_longer:
            return "new"
        self.until = until
        return "longer"

    def covers(self, epoch: int, until: float) -> bool:
        """Whether a 429 to a request of that epoch, which asks for `until`, is nothing new."""
        return epoch < self.epoch and until <= self.until + EARLY_S

    def left_s(self, now: float) -> float:
        """Until sending may go on; 0 if it may now."""
        return max(0.0, self.until - now, self.blocked_until - now)
