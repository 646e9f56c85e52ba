"""Leave to send, from the limit that all workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ...limiter import TooLargeForLimit, TooLate
from ...prompt.failure import Failure
from ...providers.size import NO_MEDIA, Media

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import SecretStr

    from config.catalog import Model, Provider
    from tasks.wire.vocabulary import Priority

    from ...limiter import Cost, Permit
    from ...providers import Answer
    from ..trip import Down, Shape, Trip

__all__ = ["Admission", "Limits"]


class Limits(Protocol):
    """The shared limit: `limiter.LimiterRegistry`, and what the tests put in its place."""

    def estimate(
        self,
        model: Model,
        *,
        input_chars: int,
        media: Media = NO_MEDIA,
        max_tokens: int | None = None,
        answers: int = 1,
        embeds: bool = False,
    ) -> Cost: ...

    def admit_free(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        priority: Priority = "normal",
        tenant: str | None = None,
    ) -> Permit | None: ...

    async def admit(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        cost: Cost,
        priority: Priority = "normal",
        tenant: str | None = None,
        deadline_at: float | None = None,
        park_after_s: float | None = None,
    ) -> Permit: ...


class Admission:
    """Waits for a permit, lends it to the call, and tells the limiter what has become of it."""

    def __init__(
        self,
        limits: Limits,
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
        async with permit:
            try:
                answer = await down(trip)
            except Failure as failure:
                self._tell(permit, trip, failure)
                raise
            if trip.headers is not None:
                permit.observe(trip.headers)
            permit.settle(answer.usage)
        return answer

    def _tell(self, permit: Permit, trip: Trip, failure: Failure) -> None:
        if trip.headers is not None:
            permit.observe(trip.headers)
            if failure.code == "rate_limited":
                failure.retry_after_s = permit.rate_limited(failure.retry_after_s, trip.headers)
        if failure.unreachable or failure.is_refusal:
            permit.give_back()
        elif failure.usage is not None:
            permit.settle(failure.usage)

    async def _admit(self, trip: Trip, keys: Sequence[SecretStr | None]) -> Permit:
        options, route = trip.job.options, trip.route
        size = route.codec.size(trip.job)
        cost = self._limits.estimate(
            route.model,
            input_chars=size.input_chars,
            media=size.media,
            max_tokens=size.max_tokens,
            answers=size.answers,
            embeds=trip.job.kind == "embed",
        )
        try:
            return await self._limits.admit(
                route.model,
                keys,
                cost=cost,
                priority=options.priority,
                tenant=options.tenant,
                deadline_at=options.deadline_at,
                park_after_s=self._park_after_s,
            )
        except TooLargeForLimit as never:
            raise Failure("too_large", str(never)) from None
        except TooLate as late:
            raise Failure("expired", str(late)) from None
