"""What a process does about a limit while Redis is away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..cost import Cost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..rate import Plan

__all__ = ["LocalPace", "WhenAway"]

WhenAway = Literal["degraded", "closed", "open"]
"""`degraded`: a careful share of the last known pace, for a bounded time, then closed. `closed`: nobody goes.
`open`: everybody goes; the provider's 429 is the only limit."""

SHARE = 0.8
"""Of the pace: processes that nobody counted may have joined."""


@dataclass(slots=True)
class LocalPace:
    """Slots without Redis: this process's share of the pace, beginning empty."""

    plan: Plan
    processes: int
    next_at: float
    ends_at: float

    @classmethod
    def begin(cls, plan: Plan, *, processes: int, now: float, for_s: float) -> LocalPace:
        """Times are seconds of the monotonic clock."""
        pace = cls(plan, max(1, processes), now, now + for_s)
        pace.next_at = now + pace._gap_s(plan.unit_s(Cost()))
        return pace

    def lease(self, costs: Iterable[Cost], *, now: float, horizon_s: float) -> list[float]:
        """Instants for the first of these costs, up to the horizon."""
        found: list[float] = []
        for cost in costs:
            at = max(now, self.next_at)
            if at > min(now + horizon_s, self.ends_at):
                break
            self.next_at = at + self._gap_s(self.plan.unit_s(cost))
            found.append(at)
        return found

    def _gap_s(self, unit_s: float) -> float:
        return unit_s * self.processes / SHARE
