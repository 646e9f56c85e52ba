"""What a job takes of the limit that all workers share, and what becomes of one whose turn is far away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.wire.kinds import KINDS

from ..prompt.failure import Failure

if TYPE_CHECKING:
    from ..limiter import Cost, LimiterRegistry
    from ..prompt.job import PromptJob
    from ..prompt.parked import Parked
    from .trip import Route, Trip

__all__ = ["estimate", "too_far", "too_late"]


def estimate(limits: LimiterRegistry, job: PromptJob, route: Route) -> Cost:
    """What the job takes of the limits of this model, if it answers."""
    size = route.codec.size(job)
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
