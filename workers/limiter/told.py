"""What answers have told of one key's limits, and what of it Redis has still to hear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .headers import RateHeader, ToldLimit

__all__ = ["ToldLimits"]


class ToldLimits:
    """The schedule keeps them for all processes; a lower limit holds in this one before Redis has heard of it."""

    def __init__(self) -> None:
        self.limits: Mapping[ToldLimit, int] = {}
        self.is_urgent = False
        """Whether Redis should hear of it now. Other headers go along with the next call."""

        self._unsaid: Sequence[RateHeader] = ()

    def note(self, headers: Sequence[RateHeader]) -> bool:
        """An answer came with these. Whether the limits have changed."""
        self._unsaid = headers
        lower = {each.tells: each.limit for each in headers if each.tells and each.limit < self._limit(each.tells)}
        if not lower:
            return False
        self.limits = {**self.limits, **lower}
        self.is_urgent = True
        return True

    def say(self) -> Sequence[RateHeader]:
        """The latest that Redis has not heard; from now on it counts as said."""
        said, self._unsaid, self.is_urgent = self._unsaid, (), False
        return said

    def hear(self, limits: Mapping[ToldLimit, int]) -> bool:
        """What the schedule keeps. Whether the limits have changed."""
        if self.is_urgent or limits == self.limits:
            return False
        self.limits = limits
        return True

    def _limit(self, name: ToldLimit) -> float:
        return self.limits.get(name, math.inf)
