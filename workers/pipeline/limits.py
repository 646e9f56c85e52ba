"""The limit that all workers share, as the pipeline sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tasks.wire.kinds import KINDS

from ..prompt.failure import Failure
from ..providers.size import NO_MEDIA, Media

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import SecretStr

    from config.catalog import Model
    from tasks.wire.vocabulary import Priority

    from ..limiter import CallSize, Cost, Forecast, Permit, Waiter
    from ..prompt.job import PromptJob
    from ..prompt.parked import Parked
    from ..providers.codec import RequestSize
    from .trip import Route, Trip

__all__ = ["Limits", "estimate", "too_far", "too_late"]


class Limits(Protocol):
    """The shared limit: `limiter.LimiterRegistry`, and what the tests put in its place."""

    def estimate(
        self,
        model: Model,
        *,
        input_chars: int,
        input_tokens: int = 0,
        media: Media = NO_MEDIA,
        max_tokens: int | None = None,
        answers: int = 1,
        writes: bool = True,
    ) -> Cost: ...

    def expected_wait_s(
        self, model: Model, keys: Sequence[SecretStr | None], priority: Priority = "normal"
    ) -> float: ...

    def forecast(self, model: Model) -> Forecast: ...

    def call_size(self, model: Model) -> CallSize: ...

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
        grows: Callable[[Waiter], Cost] | None = None,
    ) -> Permit: ...


def estimate(limits: Limits, job: PromptJob, route: Route, *, size: RequestSize | None = None) -> Cost:
    """What the job takes of the limits of this model, if it answers. `size`: the codec's, where it is known."""
    size = size or route.codec.size(job)
    return limits.estimate(
        route.model,
        input_chars=size.input_chars,
        input_tokens=size.input_tokens,
        media=size.media,
        max_tokens=size.max_tokens,
        answers=size.answers,
        writes=KINDS[job.kind].writes,
    )


def too_far(trip: Trip, far: Parked) -> BaseException:
    """What becomes of a job whose turn is far away: it goes to its next model where it may, or is parked."""
    return Failure("rate_limited", far.reason) if trip.hurries and trip.untried else far


def too_late(trip: Trip, why: str) -> Failure:
    """What becomes of a job whose time passes before its turn comes."""
    return Failure("rate_limited" if trip.untried else "expired", why)
