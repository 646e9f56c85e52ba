"""Leave to send, from the limit that all workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...limiter import TooLargeForLimit, TooLate
from ...prompt.failure import Failure, OverLimit
from ...prompt.parked import Parked
from ..limits import estimate, too_far, too_late

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import SecretStr

    from config.catalog import Provider

    from ...limiter import LimiterRegistry, Permit
    from ...providers import Answer
    from ..trip import Down, Shape, Trip

__all__ = ["Admission"]


class Admission:
    """Waits for a permit, lends it to the call, and tells the limiter what has become of it."""

    def __init__(
        self,
        limits: LimiterRegistry,
        *,
        keys_of: Callable[[Provider], Sequence[SecretStr | None]],
        park_after_s: float | None,
    ) -> None:
        """A job whose turn is more than `park_after_s` seconds away is `Parked`; None: it waits in its place."""
        self._limits = limits
        self._keys_of = keys_of
        self._park_after_s = park_after_s

    def serves(self, shape: Shape) -> bool:
        return True

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        options, route = trip.job.options, trip.route
        keys = self._keys_of(route.provider)
        permit = self._limits.admit_free(route.model, keys, priority=options.priority, tenant=options.tenant)
        if permit is None:
            permit = await self._admit(trip, keys)
        trip.key, trip.headers = permit.key, None
        try:
            if trip.pack is not None:
                trip.pack.seal(permit)
            answer = await down(trip)
            if trip.headers is not None:
                permit.observe(trip.headers)
            permit.settle(answer.usage)
        except Failure as failure:
            self._tell(permit, trip, failure)
            raise
        finally:
            permit.give_up()  # what `async with permit` does, without its two coroutines
        return answer

    def _tell(self, permit: Permit, trip: Trip, failure: Failure) -> None:
        if trip.headers is not None:
            permit.observe(trip.headers)
            if failure.code == "rate_limited" and not failure.has_no_room:
                failure.retry_after_s = permit.rate_limited(failure.retry_after_s, trip.headers)
        if failure.unreachable or failure.is_refusal:
            permit.give_back()
        elif failure.usage is not None:
            permit.settle(failure.usage)

    async def _admit(self, trip: Trip, keys: Sequence[SecretStr | None]) -> Permit:
        options, route = trip.job.options, trip.route
        cost = estimate(self._limits, trip.job, route) if trip.pack is None else trip.pack.cost()
        try:
            return await self._limits.admit(
                route.model,
                keys,
                cost=cost,
                priority=options.priority,
                tenant=options.tenant,
                deadline_at=trip.wait_until,
                park_after_s=None if trip.stays else self._park_after_s,
                grows=None if trip.pack is None else trip.pack.cost,
            )
        except TooLargeForLimit as never:
            raise OverLimit("too_large", str(never)) from None
        except TooLate as late:
            raise too_late(trip, str(late)) from None
        except Parked as far:
            raise too_far(trip, far) from None
