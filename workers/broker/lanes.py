"""Lanes: jobs that wait for the same limit, one behind the other. No I/O.

To learn that its turn is far away, a job must be started; that costs nearly what a whole job costs, and a model whose
limit is used up may have thousands of them before another model's. Where one has just been told so, those of its lane
that come next are told the same without being started.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Lanes"]

FRESH_MS = 1_000
"""How long the limiter's word holds. Then the next job is started, and asks again."""

FURTHEST_MS = 300_000
"""Who would come back later than this comes back after half of it, as in the limiter."""

MOST_LANES = 256


@dataclass(slots=True)
class _Lane:
    told_ms: int
    """The latest turn that the limiter gave."""
    heard_ms: int
    gap_ms: float
    """Between two turns; 0: nobody knows."""
    given_ms: float = 0
    """The latest turn that was given here."""


class Lanes:
    """When the next job of each lane may try again. Times are ms of Redis's clock."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def parked(self, name: str, until_ms: int, *, gap_ms: float, now_ms: int) -> None:
        """A job of this lane was started, and told to come back."""
        lane = self._fresh(name, now_ms)
        if lane is None:
            self._forget(now_ms)
            self._lanes[name] = _Lane(until_ms, now_ms, gap_ms)
        else:
            lane.told_ms, lane.heard_ms, lane.gap_ms = until_ms, now_ms, gap_ms

    def turn_ms(self, name: str, *, now_ms: int) -> int | None:
        """When the next of this lane is to come back; None: start it and see."""
        lane = self._fresh(name, now_ms)
        if lane is None or not lane.gap_ms:
            return None
        turn_ms = max(lane.given_ms, lane.told_ms) + lane.gap_ms
        if turn_ms > now_ms + FURTHEST_MS:
            turn_ms = now_ms + FURTHEST_MS // 2
        lane.given_ms = turn_ms
        return int(turn_ms)

    def _fresh(self, name: str, now_ms: int) -> _Lane | None:
        lane = self._lanes.get(name)
        return lane if lane is not None and _is_fresh(lane, now_ms) else None

    def _forget(self, now_ms: int) -> None:
        if len(self._lanes) >= MOST_LANES:
            self._lanes = {name: lane for name, lane in self._lanes.items() if _is_fresh(lane, now_ms)}


def _is_fresh(lane: _Lane, now_ms: int) -> bool:
    # What was heard in the future was heard before Redis's clock was set back.
    return abs(now_ms - lane.heard_ms) <= FRESH_MS
