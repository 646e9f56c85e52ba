"""An answer that has to fit a JSON Schema does, or the job fails with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.results import Attempt

from ...prompt.failure import Failure
from ...providers import Answer
from ...schema.form import asked_again, in_mode, limit_of, schema_of, with_limit
from ...schema.reading import Reading, read
from ...schema.steps import Repairs, larger_limit, next_step
from ...schema.validator import validator_of
from ...telemetry.counts import counts
from ..costs import known_cost_usd

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ...schema.steps import Step
    from ...schema.validator import SchemaValidator
    from ..trip import Down, Shape, Trip

__all__ = ["Schema"]

LARGE_CHARACTERS = 32_768
"""A larger answer is read beside the loop: where it is broken, that takes half a millisecond a kilobyte."""


class Schema:
    """Validates answers against the job's JSON Schema, and repairs those that it can.

    Broken syntax is repaired here, without a call. Further calls are made only within the job's `repair`: a truncated
    answer is asked for once with a higher limit, any other once more with what was wrong with the last one. They are
    calls like any, with retries and limits of their own, and none of the job's `max_attempts`.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        """`now` gives epoch seconds."""
        self._now = now

    def serves(self, shape: Shape) -> bool:
        return shape.has_schema

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        job, model = trip.job, trip.route.model
        validator = validator_of(schema_of(job.body))
        sent = in_mode(job.body, model.structured_outputs or trip.route.provider.structured_outputs)
        repairs = trip.repairs = trip.repairs or Repairs()
        try:
            return await self._climb(trip, down, sent, validator, repairs)
        except Failure:
            repairs.forget_model()
            raise
        finally:
            trip.job = job

    async def _climb(
        self, trip: Trip, down: Down, sent: dict[str, Any], validator: SchemaValidator, repairs: Repairs
    ) -> Answer:
        job = trip.job
        while True:
            body = _body(sent, repairs)
            trip.job = job if body is job.body else replace(job, body=body)
            reading = await self._ask(trip, down, validator, repairs)
            if reading.is_repaired:
                counts.add("schema_misfits_total", "syntax")
            if reading.misfit is None:
                trip.repaired = repairs.step or ("syntax" if reading.is_repaired else None)
                return reading.answer
            if reading.last_text is not None:
                repairs.last_answer = reading.last_text
            used = 0 if reading.answer.usage is None else reading.answer.usage.output_tokens
            larger = larger_limit(limit_of(sent), used=used, most=trip.route.model.max_output_tokens)
            step = next_step(reading, repairs, permitted=job.options.repair, larger=larger)
            counts.add("schema_misfits_total", step or "failed")
            if step is None:
                raise _no_fit(reading, repairs, permitted=job.options.repair)
            repairs.begin(step, error=reading.misfit, larger=larger)
            trip.failed[-1] = replace(trip.failed[-1], next=_told(step, larger))

    async def _ask(self, trip: Trip, down: Down, validator: SchemaValidator, repairs: Repairs) -> Reading:
        """One answer, or the reason why there is none. What does not fit is a failed attempt."""
        try:
            answer = await down(trip)
        except Failure as failure:
            if not failure.is_cut:
                raise _too_long(failure, repairs) from None
            return Reading(Answer(None, {}, failure.usage), failure.message, is_cut=True)
        if len(answer.text or "") > LARGE_CHARACTERS:
            reading = await asyncio.to_thread(read, answer, validator)
        else:
            reading = read(answer, validator)
        if reading.misfit is not None:
            self._note(trip, answer, reading.misfit)
        return reading

    def _note(self, trip: Trip, answer: Answer, misfit: str) -> None:
        trip.failed.append(
            Attempt(
                code="bad_response",
                message=misfit,
                http_status=200,
                answered_by=trip.route.answered_by,
                at=trip.called_at,
                duration_s=self._now() - trip.called_at,
                usage=answer.usage,
                cost_usd=known_cost_usd(trip.route.model, answer.usage, trip.tier),
            )
        )


def _body(sent: dict[str, Any], repairs: Repairs) -> dict[str, Any]:
    """What is sent now: the first prompt, with at most one sentence more."""
    body = sent if repairs.max_tokens is None else with_limit(sent, repairs.max_tokens)
    return asked_again(body, repairs.error) if repairs.step == "asked_again" else body


def _too_long(failure: Failure, repairs: Repairs) -> Failure:
    """A limit that is higher than the model's leaves the answer truncated, and another model may take it."""
    if failure.code != "bad_request" or repairs.step != "longer":
        return failure
    return Failure(
        "bad_response",
        f"the answer was truncated, and the provider refused {repairs.max_tokens:,} tokens for it; state the model's "
        "`max_output_tokens` in the catalogue, or raise the job's max_tokens as far as it goes",
        http_status=failure.http_status,
        provider_body=failure.provider_body,
        retryable=True,
    )


def _told(step: Step, larger: int | None) -> str:
    if step == "longer":
        return f"longer: the answer was truncated, so it is permitted {larger:,} tokens"
    return "asked_again: with what was wrong with this answer"


def _no_fit(reading: Reading, repairs: Repairs, *, permitted: int) -> Failure:
    """Another model may do better, hence `retryable`."""
    if reading.is_filtered:
        return Failure("content_filter", "the provider's content filter ended the answer early", http_status=200)
    message = f"the answer does not fit its schema: {reading.misfit}"
    if reading.is_cut:
        advice = "the answer was truncated; raise its max_tokens"
        if not permitted:
            advice += ", or permit further calls with `repair`"
    elif repairs.calls:
        advice = f"{repairs.calls} further call{'s' if repairs.calls > 1 else ''} brought none that does"
    else:
        advice = "`repair=1` permits one further call"
    return Failure("bad_response", f"{message} ({advice})", http_status=200, retryable=True)
