"""A call that takes far longer than the model's latest calls is given up, and made again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ....prompt.failure import Failure
from .latest import MOST_MODELS, STEP, Latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.catalog import Timeout

    from ....providers import Answer
    from ...trip import Down, Shape, Trip

__all__ = ["Latencies", "Timeouts"]


class Latencies:
    """The time-out that follows from one model's latest calls."""

    def __init__(self, stated: Timeout, times: float) -> None:
        """`times`: of what 95 % of the calls took. The time-outs stay within those `stated`."""
        self._stated = stated
        self._times = times
        self._latest = Latest()
        self.timeout: Timeout | None = None
        """How long a call may take; None as long as too few are known."""

    def note(self, took_s: float) -> None:
        """A call was answered after so long, or given up: without those, each time-out would make the next shorter."""
        if self._latest.note(took_s) and self._latest.p95_s is not None:
            self._conclude(self._latest.p95_s)

    def _conclude(self, p95_s: float) -> None:
        least_s = min(self._stated.least_s, self._stated.total_s)
        total_s = max(least_s, self._times * p95_s)
        if total_s > least_s:
            total_s = least_s * STEP ** math.ceil(math.log(total_s / least_s, STEP))
        total_s = min(total_s, self._stated.total_s)
        if self.timeout is None or self.timeout.total_s != total_s:
            self.timeout = self._stated.within(total_s)


class Timeouts:
    """Gives up a call that takes many times what the model's latest calls took."""

    def __init__(self, *, reaches: Callable[[Shape], bool], now: Callable[[], float]) -> None:
        """`reaches`: whether a model that jobs of the shape may get to has such a time-out. `now`: epoch seconds."""
        self._reaches = reaches
        self._now = now
        self._known: dict[str, Latencies] = {}

    def serves(self, shape: Shape) -> bool:
        return self._reaches(shape)

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        stated = trip.route.model.timeout
        if stated.times_p95 is None or trip.timeout is not None:  # that of another tier
            return await down(trip)
        latencies = self._of(trip, stated, stated.times_p95)
        if trip.job.options.repeat_timeouts is not False:
            trip.timeout = latencies.timeout
        began_at = self._now()
        try:
            answer = await down(trip)
        except Failure as failure:
            if failure.code == "timeout" and not failure.unreachable:
                latencies.note(self._now() - began_at)
            raise
        finally:
            trip.timeout = None
        latencies.note(self._now() - began_at)
        return answer

    def _of(self, trip: Trip, stated: Timeout, times: float) -> Latencies:
        alias = trip.route.alias
        known = self._known.get(alias)
        if known is None:
            if len(self._known) >= MOST_MODELS:
                self._known.clear()
            known = self._known[alias] = Latencies(stated, times)
        return known
