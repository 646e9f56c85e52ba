"""What a job comes back with: the trip's end as a `PromptResult`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.results import JobError, PromptResult, Usage
from tasks.wire.vocabulary import Status

if TYPE_CHECKING:
    from config.catalog import Model

    from ..prompt.failure import Failure
    from ..providers import Answer
    from .trip import Trip

__all__ = ["answered", "unanswered"]


def answered(trip: Trip, answer: Answer, now: float) -> PromptResult:
    return PromptResult(
        id=trip.job.id,
        status="succeeded",
        text=answer.text,
        response=answer.response,
        model=trip.job.model,
        answered_by=trip.route.answered_by,
        usage=answer.usage or Usage(),
        cost_usd=_cost_usd(trip.route.model, answer.usage),
        attempts=trip.attempts,
        queued_s=_queued_s(trip),
        duration_s=now - trip.started_at,
        suspected_double_payment=trip.paid_twice,
        metadata=trip.job.options.metadata,
        failed_attempts=tuple(trip.failed),
    )


def unanswered(trip: Trip, failure: Failure, now: float) -> PromptResult:
    history = tuple(trip.failed)
    status: Status = "expired" if failure.code == "expired" else "failed"
    return PromptResult(
        id=trip.job.id,
        status=status,
        model=trip.job.model or None,
        attempts=trip.attempts,
        queued_s=_queued_s(trip),
        duration_s=now - trip.started_at,
        suspected_double_payment=trip.paid_twice,
        metadata=trip.job.options.metadata,
        error=JobError(
            code=failure.code,
            message=failure.message,
            http_status=failure.http_status,
            retryable=failure.retryable,
            provider_body=failure.provider_body,
            attempts=history,
        ),
        failed_attempts=history,
    )


def _cost_usd(model: Model, usage: Usage | None) -> float | None:
    if model.price is None or usage is None:
        return None
    cost = model.price.cost(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cached_tokens=usage.cached_tokens
    )
    return None if cost is None else float(cost)


def _queued_s(trip: Trip) -> float | None:
    submitted_at = trip.job.options.submitted_at
    return None if submitted_at is None else max(0.0, trip.started_at - submitted_at)
