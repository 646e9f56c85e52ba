"""Not while the provider can't be reached from here: one job tries for all (`outages.Outages`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...prompt.failure import Failure
from ...prompt.parked import Parked
from ...telemetry.notices import notices
from ..outages import Reason, out_of_reach, patience_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ...providers import Answer
    from ..outages import Outage, Outages
    from ..trip import Down, Shape, Trip

__all__ = ["Reach"]

logger = logging.getLogger("promptmill.pipeline")

LOOK_EVERY_S = 1.0
"""How often a job that waits for its provider looks whether another has reached it."""

ADVICE = (
    "They go on by themselves. Is it this machine's network? "
    "Behind a proxy, set PROMPTMILL_HTTP__PROXY and start again."
)

RETURN_GAP_S = 0.001
"""Between the returns of the jobs that were parked because their provider can't be reached."""


class Reach:
    """Has a provider's jobs wait while no connection to it stands. Such a call was no attempt, and costs nothing."""

    def __init__(
        self,
        outages: Outages,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        patience_s: float,
        park_after_s: float | None,
    ) -> None:
        """A job without a deadline waits for `patience_s`. One that would wait in its place for more than
        `park_after_s` is parked; None: none is.
        """
        self._outages = outages
        self._now = now
        self._sleep = sleep
        self._patience_s = patience_s
        self._park_after_s = park_after_s

    def serves(self, shape: Shape) -> bool:
        return True

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        while True:
            outage = await self._turn(trip) if self._outages else None
            trip.request = None
            try:
                answer = await down(trip)
            except Failure as failure:
                if not failure.unreachable:
                    trip.unreached = None
                    self._note_reached(trip)
                    raise
                self._note_unreached(trip, failure)
            else:
                self._note_reached(trip)
                return answer
            finally:
                if outage is not None:
                    outage.release()

    async def _turn(self, trip: Trip) -> Outage | None:
        """Wait while the provider can't be reached.

        The outage, if this job is the one to try again: `release` it afterwards. None: it is over. Raises `Parked`, and
        `Failure` where there is no point in waiting longer.
        """
        options, provider = trip.job.options, trip.route.provider
        while (outage := self._outages.of(provider.name)) is not None:
            now = self._now()
            if outage.is_over:
                self._over(trip, began_at=now)
                break
            if options.deadline_at is not None and now >= options.deadline_at:
                raise out_of_reach(outage.reason)
            if outage.claim(now):
                outage.probe = trip
                return outage
            trip.unreached = outage.reason
            waited_s = now - max(outage.since, options.submitted_at or 0.0)
            if options.deadline_at is None and waited_s >= self._patience_s:
                raise patience_over(outage.reason, self._patience_s)
            self._park_if_far(trip, outage, now)
            await self._sleep(min(LOOK_EVERY_S, max(outage.until, outage.probing_until) - now))
        trip.unreached = None
        return None

    def _park_if_far(self, trip: Trip, outage: Outage, now: float) -> None:
        if self._park_after_s is None or outage.until - now <= self._park_after_s:
            return
        deadline_at = trip.job.options.deadline_at
        if deadline_at is None or deadline_at > outage.until:
            raise Parked(outage.until, "the provider can't be reached", gap_s=RETURN_GAP_S)

    def _note_unreached(self, trip: Trip, failure: Failure) -> None:
        provider = trip.route.provider
        trip.unreached = Reason(failure.code, failure.message)
        outage = self._outages.failed(provider.name, trip.unreached, began_at=trip.called_at, now=self._now())
        if outage is None:
            return
        address = urlsplit(provider.base_url).netloc
        waiting = f"Provider {provider.name} ({address}) can't be reached ({failure.message}); its jobs wait"
        logger.warning("%s, and one tries again in %g s", waiting, outage.pause_s)
        notices.tell("unreachable", provider.name, f"{waiting}. {ADVICE}", lasts_s=outage.pause_s)

    def _note_reached(self, trip: Trip) -> None:
        # A job that was refused further down has made no call.
        if self._outages and trip.request is not None:
            self._over(trip, began_at=trip.called_at)

    def _over(self, trip: Trip, *, began_at: float) -> None:
        name = trip.route.provider.name
        outage = self._outages.reached(name, began_at=began_at)
        if outage is not None:
            logger.info("Provider %s is reached again, after %.0f s", name, self._now() - outage.since)
