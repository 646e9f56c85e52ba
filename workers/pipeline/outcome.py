"""What a job comes back with: the trip's end as a `PromptResult`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.results import JobError, PromptResult, Usage
from tasks.wire.vocabulary import Status

from .costs import failed_cost_usd, total_cost_usd
from .vectors import for_reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..prompt.failure import Failure
    from ..providers import Answer
    from .trip import Trip

__all__ = ["answered", "unanswered"]


def answered(trip: Trip, answer: Answer, now: float) -> PromptResult:
    """Of an answer that was stored, only the calls that failed before it have cost anything: to other models, say."""
    known = trip.cached
    return PromptResult(
        id=trip.job.id,
        status="succeeded",
        text=answer.text,
        response=for_reader(trip.job, answer.response) if trip.job.kind == "embed" else answer.response,
        model=trip.job.model,
        answered_by=trip.route.answered_by if known is None else known.answered_by,
        tier=trip.tier if known is None else None,
        usage=(answer.usage or Usage()) if known is None else _sum(_counted(trip)),
        cost_usd=(
            total_cost_usd(trip.failed, trip.route.model, answer.usage, trip.tier)
            if known is None
            else failed_cost_usd(trip.failed)
        ),
        attempts=trip.attempts,
        cached=known is not None,
        saved_usd=None if known is None else known.cost_usd,
        route=None if trip.chain is None else trip.chain.chosen,
        queued_s=_queued_s(trip),
        duration_s=now - trip.started_at,
        repaired=trip.repaired,
        too_long=trip.shortened,
        suspected_double_payment=trip.paid_twice,
        metadata=trip.job.options.metadata,
        failed_attempts=tuple(trip.failed),
    )


def unanswered(trip: Trip, failure: Failure, now: float) -> PromptResult:
    history, counted = tuple(trip.failed), _counted(trip)
    status: Status = "expired" if failure.code == "expired" else "failed"
    return PromptResult(
        id=trip.job.id,
        status=status,
        model=trip.job.model or None,
        usage=_sum(counted),
        cost_usd=failed_cost_usd(trip.failed) if counted else None,
        attempts=trip.attempts,
        route=None if trip.chain is None else trip.chain.chosen,
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
            last_answer=None if trip.repairs is None else trip.repairs.last_answer,
        ),
        failed_attempts=history,
    )


def _counted(trip: Trip) -> list[Usage]:
    """What the provider counted for calls that brought no answer: it is paid for."""
    return [attempt.usage for attempt in trip.failed if attempt.usage is not None] if trip.failed else []


def _sum(counted: Sequence[Usage]) -> Usage:
    return Usage(
        input_tokens=sum(each.input_tokens for each in counted),
        output_tokens=sum(each.output_tokens for each in counted),
        cached_tokens=sum(each.cached_tokens for each in counted),
        cache_write_tokens=sum(each.cache_write_tokens for each in counted),
    )


def _queued_s(trip: Trip) -> float | None:
    submitted_at = trip.job.options.submitted_at
    return None if submitted_at is None else max(0.0, trip.started_at - submitted_at)
