"""The limits that answers have stated of one key, and what of it Redis has still to hear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .headers import LearnedLimit, RateHeader

__all__ = ["LearnedLimits"]


class LearnedLimits:
    """The schedule decides which of them are believed, and keeps those for all processes."""

    def __init__(self) -> None:
        self.limits: Mapping[LearnedLimit, int] = {}
        self.is_urgent = False
        """Whether Redis should hear of it now. Other headers go along with the next call."""

        self.is_open = False
        """Whether there is news that the schedule has not yet answered."""

        self._unsaid: Sequence[RateHeader] = ()
        self._said: dict[LearnedLimit, int] = {}

    def note(self, headers: Sequence[RateHeader]) -> bool:
        """An answer came with these. Whether Redis should hear of them now: of a lower limit, at its first telling."""
        self._unsaid = headers
        news = any(each.tells and self._is_news(each.tells, each.limit) for each in headers)
        if news:
            self.is_urgent = self.is_open = True
        return news

    def say(self) -> Sequence[RateHeader]:
        """The latest that Redis has not heard; from now on it counts as said."""
        said, self._unsaid, self.is_urgent = self._unsaid, (), False
        self._said |= {each.tells: each.limit for each in said if each.tells}
        return said

    def hear(self, limits: Mapping[LearnedLimit, int]) -> bool:
        """What the schedule keeps. Whether the limits have changed."""
        self.is_open = self.is_urgent
        if limits == self.limits:
            return False
        self.limits = limits
        return True

    def _is_news(self, name: LearnedLimit, limit: int) -> bool:
        # One that the schedule has heard and does not believe must not cost a call for each answer.
        return limit < self.limits.get(name, math.inf) and self._said.get(name) != limit
