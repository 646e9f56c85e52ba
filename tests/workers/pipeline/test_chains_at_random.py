"""Whatever models do, a job's calls are counted once, in the order of its chain, and end where they should."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from config.catalog import Catalog
from tasks.results import Attempt, PromptResult, Usage
from tests.support.virtual_time import VirtualTime
from tests.workers.conftest import FreeLimits
from workers.pipeline.pipeline import Pipeline
from workers.pipeline.retry_policy import RetryPolicy
from workers.pipeline.trip import Trip
from workers.prompt.failure import Failure
from workers.prompt.job import Options, PromptJob
from workers.providers import Answer
from workers.providers.keyring import KeyRing

NAMES = "abcd"
REPEATED = {"server_error", "rate_limited", "bad_response"}
CURED = {*REPEATED, "not_found", "quota_exhausted"}
ALONE = {"bad_request", "content_filter", "auth", "permission"}
OUTCOMES = ["ok", *sorted(CURED | ALONE)]


def run(outcomes: list[str], *, length: int, max_attempts: int | None) -> tuple[PromptResult, list[str]]:
    """The result, and the models that were called."""
    models: dict[str, Any] = {name: {"provider": "p"} for name in NAMES}
    models["a"]["fallbacks"] = list(NAMES[1:length])
    catalog = Catalog.model_validate({"providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}}, "models": models})
    clock, asked, coming = VirtualTime(), list[str](), iter(outcomes)
    http: Any = None
    limits: Any = FreeLimits()
    pipeline = Pipeline(
        catalog=catalog,
        http=http,
        keys=KeyRing({}),
        limits=limits,
        retry=RetryPolicy(),
        now=clock,
        sleep=clock.sleep,
        rng=random.Random(1),
    )

    async def call(trip: Trip) -> Answer:
        asked.append(trip.route.alias)
        trip.attempts += 1
        outcome: Any = next(coming, "ok")
        if outcome == "ok":
            return Answer("24", {}, Usage(1, 1))
        trip.failed.append(Attempt(outcome, "no", answered_by=trip.route.answered_by))
        raise Failure(outcome, "no", retryable=outcome in REPEATED, http_status=500)

    pipeline._call = call  # type: ignore[assignment]
    body = {"model": "a", "messages": [{"role": "user", "content": "How many?"}]}
    job = PromptJob("job-1", "chat", "a", body, Options(max_attempts=max_attempts))
    return asyncio.run(pipeline.run(job)), asked


@given(
    outcomes=st.lists(st.sampled_from(OUTCOMES), max_size=25),
    length=st.integers(1, 4),
    max_attempts=st.none() | st.integers(1, 8),
)
def test_calls_are_counted_once_and_in_order(outcomes: list[str], length: int, max_attempts: int | None) -> None:
    result, asked = run(outcomes, length=length, max_attempts=max_attempts)
    allowed = 4 if max_attempts is None else max_attempts
    assert len(asked) == result.attempts <= allowed
    assert asked == sorted(asked), "no model is asked again after another"
    met = [*outcomes, *["ok"] * allowed][: len(asked)]
    assert "ok" not in met[:-1] and not ALONE & set(met[:-1]), "these end the job"
    if met[-1] == "ok":
        assert (result.status, result.answered_by) == ("succeeded", f"p/{asked[-1]}")
    else:
        assert (result.status, result.error and result.error.code) == ("failed", met[-1])
        is_over = met[-1] in ALONE or len(asked) == allowed or asked[-1] == NAMES[length - 1]
        assert is_over, "there was another model, and an attempt for it"
    named = [attempt.next[0] for attempt in result.failed_attempts if attempt.next]
    assert named == list(dict.fromkeys(asked))[1:], "each step to another model has its reason"
