"""The job's own limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ...prompt.failure import Failure
from ...telemetry.counts import counts
from ..offers import not_taken
from ..outages import out_of_reach

if TYPE_CHECKING:
    from ...providers import Answer
    from ..trip import Down, Shape, Trip

__all__ = ["Deadline"]


class Deadline:
    """Ends a job at its deadline, with the reason why it was not answered by then."""

    def serves(self, shape: Shape) -> bool:
        return shape.has_deadline

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        deadline_at = trip.job.options.deadline_at
        if deadline_at is None:
            raise ValueError("a job without a deadline met this rung")
        left_s = deadline_at - trip.started_at
        if left_s <= 0:
            where = "before a worker could start it" if trip.followed is None else "while it waited for an equal prompt"
            raise Failure("expired", f"the job's deadline passed {where}")
        try:
            async with asyncio.timeout(left_s) as limit:
                return await down(trip)
        except TimeoutError:
            if not limit.expired():
                raise
        if trip.asks_others:
            raise not_taken()
        if trip.outage is not None and not trip.was_cut:
            raise out_of_reach(trip.outage)
        if trip.was_cut:
            counts.add("suspected_payments_total", "timeout")
        raise Failure("expired", f"the job's deadline passed {_when(trip)}")


def _when(trip: Trip) -> str:
    if not trip.attempts:
        return "before its first call"
    return f"in the middle of attempt {trip.attempts}" if trip.was_cut else f"after attempt {trip.attempts}"
