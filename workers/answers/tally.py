"""What a process counts of its look-ups, told to Redis now and then: a count for each job would cost a trip each."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, get_args

from ..telemetry.counts import counts

__all__ = ["MICRO", "TIERS", "Tally", "Tier"]

Tier = Literal["memory", "redis", "shared", "followed", "missed", "skipped"]
"""Where an answer was: in memory, in Redis, or in the call of an equal prompt; or that the job waits for such a call,
has to make its own, or makes it because Redis can't be asked."""

TIERS: Final[tuple[Tier, ...]] = get_args(Tier)

MICRO: Final = 1_000_000


class Tally:
    """Since it was last told."""

    def __init__(self) -> None:
        self._lookups: Counter[Tier] = Counter()
        self._saved_usd = 0.0

    def note(self, tier: Tier, times: int = 1, *, saved_usd: float | None = None) -> None:
        """`saved_usd` is what the call had cost whose answer was used."""
        self._lookups[tier] += times
        if saved_usd:
            self._saved_usd += saved_usd

    def tell(self) -> None:
        """Add it to what the process counts."""
        for tier, n in self._lookups.items():
            counts.add("cache_lookups_total", tier, n)
        self._lookups.clear()
        if saved := int(self._saved_usd * MICRO):
            counts.add("cache_saved_usd_total", "answers", saved)
            self._saved_usd -= saved / MICRO
