"""Not while the provider is out: one job tries for all, and the others wait or go elsewhere (`workers/breaker/`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...prompt.failure import Failure
from ...prompt.parked import Parked
from ..outages import out_of_reach, patience_over, refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from ...breaker import Outage
    from ...providers import Answer
    from ..trip import Down, Shape, Trip

__all__ = ["Breaker"]

LOOK_EVERY_S: Final = 1.0
"""How often a job that waits for its provider looks whether another has reached it."""

LEAST_WAIT_S: Final = 0.05

PARK_AFTER_S: Final = 0.5
"""Who waits for longer than this for a provider that fails gives its place back, or other models' jobs had none."""

RETURN_GAP_S: Final = 0.001
"""Between the returns of the jobs that were parked because their provider is out."""

SPREAD_S: Final = 1.0
"""Over how much time those of one process that were started come back."""

BEFORE_DEADLINE_S: Final = 1.0
"""How long before its deadline a parked job comes back, to end with its reason."""


class Breaker:
    """Has the jobs of a provider that is out wait, or another model answer them. A call that fails is no attempt then.

    What calls meet is noted at the bottom (`call.Call`), so that an attempt counts when it fails, and not when the job
    gives up; and a job that is below this rung when an outage begins is stopped there.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: Random,
        patience_s: float,
        park_after_s: float | None,
    ) -> None:
        """A job without a deadline waits for `patience_s`. One that would wait in its place for more than
        `park_after_s` for a connection is parked, and sooner where calls fail; None: none is.
        """
        self._now = now
        self._sleep = sleep
        self._rng = rng
        self._patience_s = patience_s
        self._park_after_s = park_after_s

    def serves(self, shape: Shape) -> bool:
        return True

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        health = trip.route.health
        has_tried = False
        while True:
            if health.outages:
                await self._wait_for_turn(trip, has_tried=has_tried)
            try:
                return await down(trip)
            except Failure as failure:
                if not (failure.unreachable or failure.outlasts):
                    raise
                if trip.untried:
                    raise
                if failure.outlasts:
                    trip.postponed += 1
                has_tried = trip.is_probe
            finally:
                if trip.is_probe:
                    trip.is_probe = False
                    health.release(trip)

    async def _wait_for_turn(self, trip: Trip, *, has_tried: bool) -> None:
        """Wait until the outage is over, or this job is the one to try (`trip.is_probe`).

        `has_tried`: it was just now, and another is to be the next. Raises `Parked`, and `Failure` where there is no
        point in waiting longer.
        """
        health, options = trip.route.health, trip.job.options
        trip.request = None  # the stage of the next call tells whether a connection stands
        while health.outages:
            outage = await health.claim(trip)
            if outage is None:
                trip.is_probe = bool(health.outages)
                break
            now = self._now()
            if options.deadline_at is not None and now >= options.deadline_at:
                raise out_of_reach(outage.reason)
            trip.outage = outage.reason
            if trip.untried:
                raise refused(outage.reason)
            waited_s = now - max(outage.since, options.submitted_at or 0.0)
            if options.deadline_at is None and waited_s >= self._patience_s:
                raise patience_over(outage.reason, self._patience_s)
            again_at = outage.looks_again_at(now, every_s=LOOK_EVERY_S)
            self._park_if_far(trip, outage, now, again_at + SPREAD_S if has_tried else again_at)
            await self._sleep(max(LEAST_WAIT_S, min(LOOK_EVERY_S, again_at - now)))
        trip.outage = None

    def _park_if_far(self, trip: Trip, outage: Outage, now: float, again_at: float) -> None:
        if self._park_after_s is None:
            return
        is_unreachable = outage.kind == "unreachable"
        if again_at - now <= (self._park_after_s if is_unreachable else min(PARK_AFTER_S, self._park_after_s)):
            return
        why = "the provider can't be reached" if is_unreachable else "the provider fails"
        back_at = again_at + self._rng.uniform(0.0, SPREAD_S)
        deadline_at = trip.job.options.deadline_at
        if deadline_at is not None and back_at > (latest := deadline_at - BEFORE_DEADLINE_S):
            if latest - now <= PARK_AFTER_S:
                return
            back_at = latest
        raise Parked(back_at, why, gap_s=RETURN_GAP_S)
