"""What a job comes back with: the trip's end as a `PromptResult`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.results import Attempt, JobError, PromptResult, Usage
from tasks.wire.vocabulary import Status

from ..prompt.failure import Failure
from .costs import failed_cost_usd, known_cost_usd, total_cost_usd
from .vectors import for_reader

if TYPE_CHECKING:
    from ..providers import Answer
    from .trip import Trip

__all__ = ["answered", "attempt_of", "cut_off", "unanswered"]


def answered(trip: Trip, answer: Answer, now: float) -> PromptResult:
    """Of an answer that was stored, only the calls that failed before it have cost anything: to other models, say."""
    known, priced = trip.cached, trip.priced
    if known is not None:
        cost_usd = failed_cost_usd(trip.failed)
    elif priced is not None and priced[0] is answer and not trip.failed:
        cost_usd = priced[1]
    else:
        cost_usd = total_cost_usd(trip.failed, trip.route.model, answer.usage, trip.tier)
    return PromptResult(
        id=trip.job.id,
        status="succeeded",
        text=answer.text,
        response=for_reader(trip.job, answer.response) if trip.job.kind == "embed" else answer.response,
        model=trip.job.model,
        answered_by=trip.route.answered_by if known is None else known.answered_by,
        tier=trip.tier if known is None else None,
        usage=(answer.usage or Usage()) if known is None else sum(_counted(trip), Usage()),
        cost_usd=cost_usd,
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
        usage=sum(counted, Usage()),
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


def attempt_of(trip: Trip, failure: Failure, now: float) -> Attempt:
    """The latest call, which brought no answer."""
    return Attempt(
        code=failure.code,
        message=failure.message,
        http_status=failure.http_status,
        answered_by=trip.route.answered_by,
        request_id=failure.request_id,
        at=trip.called_at,
        duration_s=now - trip.called_at,
        retry_after_s=failure.retry_after_s,
        suspected_payment=failure.suspected_payment,
        usage=failure.usage,
        cost_usd=known_cost_usd(trip.route.model, failure.usage, trip.tier),
    )


def cut_off(trip: Trip) -> Failure:
    """The latest call was stopped: by the job's deadline or time limit, or a cancel."""
    return Failure("timeout", "stopped before there was an answer", suspected_payment=trip.was_cut)


def _counted(trip: Trip) -> list[Usage]:
    """What the provider counted for calls that brought no answer: it is paid for."""
    return [attempt.usage for attempt in trip.failed if attempt.usage is not None] if trip.failed else []


def _queued_s(trip: Trip) -> float | None:
    submitted_at, started_at = trip.job.options.submitted_at, trip.started_at
    if submitted_at is None:
        return None
    return started_at - submitted_at if started_at > submitted_at else 0.0
