"""The life of one prompt, rung by rung, against real servers."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import SecretStr

from tasks.results import Attempt, PromptResult, Usage
from workers.limiter import TooLargeForLimit, TooLate
from workers.pipeline.pipeline import Pipeline
from workers.pipeline.retry_policy import RetryPolicy
from workers.pipeline.trip import Trip
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.prompt.parked import Parked
from workers.providers.keyring import KeyRing
from workers.telemetry.counts import counts

PRICE = {"input": 1, "output": 10, "date": "2026-01-01", "source": "a test"}


def completion(**usage: int) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "24 clips"}, "finish_reason": "stop"}
    return json.dumps({"id": "c-1", "choices": [choice], **({"usage": usage} if usage else {})}).encode()


def suspected(cause: str) -> int:
    return counts.take().get(f"suspected_payments_total:{cause}", 0)


# -- results


@pytest.mark.covers("catalog", "models.price")
@pytest.mark.covers("option", "metadata", "submitted_at")
async def test_an_answered_job(pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, clock: Any) -> None:
    server = await raw_server(reply(200, completion(prompt_tokens=1_000, completion_tokens=50)))
    async with pipeline_to(server.url, price=PRICE) as pipeline:
        result = await pipeline.run(chat_job(submitted_at=clock.now_s - 2.5, metadata={"row": 7}))
    assert result == PromptResult(
        id="job-1",
        status="succeeded",
        text="24 clips",
        response=json.loads(completion(prompt_tokens=1_000, completion_tokens=50)),
        model="m",
        answered_by="p/upstream-m",
        tier="standard",
        usage=Usage(input_tokens=1_000, output_tokens=50),
        cost_usd=0.0015,
        attempts=1,
        queued_s=2.5,
        duration_s=0.0,
        metadata={"row": 7},
    )


@pytest.mark.covers("catalog", "models.upstream")
async def test_the_request_names_upstream_model_key_and_job(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, key: str
) -> None:
    server = await raw_server(reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        await pipeline.run(chat_job())
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1")
    assert f"Authorization: Bearer {key}".encode() in head
    assert b"x-promptmill-job-id: job-1" in head
    assert json.loads(body)["model"] == "upstream-m"


async def test_an_embedding(pipeline_to: Any, embed_job: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=8)
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(embed_job(["one", "two"]))
    assert (result.status, result.text) == ("succeeded", None)
    assert [len(row["embedding"]) for row in result.response["data"]] == [8, 8]


@pytest.mark.parametrize(
    ("price", "usage"),
    [
        (None, {"prompt_tokens": 5}),
        (PRICE, {}),
        ({**PRICE, "output": None}, {"prompt_tokens": 5, "completion_tokens": 1}),
    ],
)
async def test_an_unknown_cost_is_not_zero(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, price: Any, usage: Any
) -> None:
    server = await raw_server(reply(200, completion(**usage)))
    async with pipeline_to(server.url, price=price) as pipeline:
        assert (await pipeline.run(chat_job())).cost_usd is None


REASONED_ALONE = json.dumps(
    {
        "choices": [{"message": {"content": None, "reasoning_content": "570"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 40},
    }
).encode()
BROKEN_OFF = json.dumps(
    {
        "choices": [{"message": {"content": "half"}, "finish_reason": "error"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 10},
    }
).encode()


async def test_a_failed_call_that_was_counted_is_paid_for(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any
) -> None:
    server = await raw_server(reply(200, REASONED_ALONE))
    async with pipeline_to(server.url, price=PRICE, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.error.code, result.attempts) == ("failed", "bad_response", 1)
    assert (result.usage, result.cost_usd) == (Usage(1_000, 40), 0.0014)
    assert free_limits.settled == [Usage(1_000, 40)]
    assert PromptResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


async def test_an_answer_costs_what_its_failed_attempts_have_cost_too(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(200, BROKEN_OFF), reply(200, completion(prompt_tokens=1_000, completion_tokens=50)))
    async with pipeline_to(server.url, price=PRICE) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.text, result.attempts, result.usage) == ("24 clips", 2, Usage(1_000, 50))
    assert [(each.code, each.usage) for each in result.failed_attempts] == [("server_error", Usage(1_000, 10))]
    assert result.cost_usd == pytest.approx(0.0015 + 0.0011)


async def test_a_parked_job_remembers_its_failed_attempts(chat_job: Any) -> None:
    before, after = Trip(chat_job(), 1.0), Trip(chat_job(), 2.0)
    before.attempts, before.failed = 1, [Attempt("server_error", "broken off", usage=Usage(7, 8, 1, 2))]
    after.remember(before.memory() or "")
    assert after.failed == before.failed


async def test_an_error_within_a_200_pauses_the_key_as_that_error_does(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any
) -> None:
    slow_down = reply(200, b'{"error": {"code": 429, "message": "slow down"}}', "Retry-After: 3")
    server = await raw_server(slow_down, reply(200, completion()))
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts) == ("succeeded", 2)
    assert [(each.code, each.suspected_payment) for each in result.failed_attempts] == [("rate_limited", False)]
    assert free_limits.refused == [3.0]


async def test_a_result_survives_its_way_through_redis(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate("500")
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert PromptResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


async def test_messages_of_both_forms_are_handled(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate()
    body = chat_job().body
    async with pipeline_to(simulator.url) as pipeline:
        from_client = await pipeline.handle("chat", "a", [json.dumps({"body": body})], {})
        from_stock = await pipeline.handle("chat", "b", [], {**body, "promptmill": {"tenant": "t"}})
        unreadable = await pipeline.handle("chat", "c", ["{"], {})
    assert (from_client.id, from_client.ok, from_stock.id, from_stock.ok) == ("a", True, "b", True)
    assert (unreadable.id, unreadable.status, unreadable.error.code) == ("c", "failed", "bad_request")
    assert (unreadable.attempts, unreadable.model) == (0, None)


# -- attempts


async def test_a_failing_provider_is_retried_and_each_attempt_told(
    pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any
) -> None:
    simulator = await simulate("503")
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts, simulator.stats()["calls"]) == ("failed", 4, 4)
    assert (result.error.code, result.error.http_status, result.error.retryable) == ("server_error", 503, True)
    assert result.error.attempts == result.failed_attempts
    assert [attempt.at for attempt in result.failed_attempts] == [
        1_000_000.0 + sum(clock.slept_s[:n]) for n in range(4)
    ]
    assert {attempt.answered_by for attempt in result.failed_attempts} == {"p/upstream-m"}
    assert all(attempt.request_id for attempt in result.failed_attempts)
    assert all(slept <= ceiling for slept, ceiling in zip(clock.slept_s, (1, 2, 4), strict=True))


async def test_an_answer_after_failures_keeps_their_history(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, clock: Any
) -> None:
    server = await raw_server(reply(429, b"", "Retry-After: 1"), reply(500, b""), reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts, result.error) == ("succeeded", 3, None)
    assert [attempt.code for attempt in result.failed_attempts] == ["rate_limited", "server_error"]
    assert [attempt.retry_after_s for attempt in result.failed_attempts] == [1.0, None]
    assert clock.slept_s[0] == 0.0, "after a 429 the limiter waits, not the job"
    assert result.duration_s == pytest.approx(sum(clock.slept_s))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("401", "auth"),
        ("403", "permission"),
        ("404", "not_found"),
        ("400", "bad_request"),
        ("context", "too_large"),
        ("quota", "quota_exhausted"),
        ("content-filter", "content_filter"),
        ("redirect", "bad_response"),
    ],
)
async def test_what_cant_succeed_is_asked_once(
    pipeline_to: Any, chat_job: Any, simulate: Any, fault: str, code: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.error.code, result.error.retryable) == ("failed", code, False)
    assert (result.attempts, simulator.stats()["calls"]) == (1, 1)


async def test_the_job_may_say_how_often(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate("500")
    async with pipeline_to(simulator.url) as pipeline:
        assert (await pipeline.run(chat_job(max_attempts=2))).attempts == 2


# -- a provider that hangs, breaks, lies, floods, redirects, limits or is not there: rows of the promises

QUICK = {"timeout": {"total_s": 0.4, "connect_s": 0.4, "read_s": 0.15}}


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("reset", "connection"),
        ("close", "connection"),
        ("partial", "connection"),
        ("chunk-cut", "connection"),
    ],
)
async def test_row_18_a_broken_connection_is_a_named_retryable_error(
    pipeline_to: Any, chat_job: Any, simulate: Any, fault: str, code: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url, **QUICK) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert [attempt.code for attempt in result.failed_attempts] == [code] * 2
    assert (result.error.code, result.error.retryable) == (code, True)
    assert all(attempt.suspected_payment for attempt in result.failed_attempts)
    assert result.suspected_double_payment


@pytest.mark.promise(18)
async def test_row_18_a_hanging_provider_can_not_outlast_the_deadline(
    pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any, wait_until: Any
) -> None:
    simulator = await simulate("hang")
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job(deadline_at=clock.now_s + 1.0))
    assert (result.status, result.error.code, result.attempts) == ("expired", "expired", 1)
    assert [(each.code, each.suspected_payment) for each in result.failed_attempts] == [("timeout", True)]
    assert (result.suspected_double_payment, suspected("timeout")) == (False, 1), "nothing followed"
    await wait_until(lambda: simulator.stats()["cancelled"] == 1, description="the provider sees us go")


@pytest.mark.promise(19)
@pytest.mark.parametrize(
    "fault",
    ["error-200", "empty", "null", "no-choices", "null-content", "html", "nan", "bad-utf8", "deep"],
)
async def test_row_19_a_200_that_is_no_answer_is_a_bad_response(
    pipeline_to: Any, chat_job: Any, simulate: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert (result.status, result.error.code, result.error.retryable) == ("failed", "bad_response", True)
    assert (result.attempts, result.response, result.text) == (2, None, None)


@pytest.mark.promise(20)
@pytest.mark.parametrize(
    ("fault", "code"), [("huge", "too_large"), ("gzip-bomb", "too_large"), ("header-100k", "bad_response")]
)
async def test_row_20_a_flood_is_a_named_failure(
    pipeline_to: Any, chat_job: Any, simulate: Any, fault: str, code: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url, http={"max_response_bytes": 1_000_000}) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=1))
    assert (result.status, result.error.code) == ("failed", code)


@pytest.mark.promise(21)
async def test_row_21_a_redirect_is_not_followed(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate("redirect")
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.error.code, result.error.http_status) == ("bad_response", 302)
    assert "base_url" in result.error.message
    assert simulator.stats()["calls"] == 1


@pytest.mark.promise(22)
async def test_row_22_a_long_pause_of_the_provider_costs_no_attempt(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any
) -> None:
    an_hour = reply(429, b"", "Retry-After: 3600")
    server = await raw_server(*[an_hour] * 6, reply(503, b""), reply(200, completion()))
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert (result.status, result.attempts) == ("succeeded", 8)
    assert free_limits.refused == [3_600.0] * 6


@pytest.mark.promise(22)
async def test_row_22_but_a_job_that_wants_one_call_makes_one(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(429, b"", "Retry-After: 3600"))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=1))
    assert (result.status, result.error.code, result.attempts) == ("failed", "rate_limited", 1)


async def test_row_22_a_long_reset_costs_no_attempt_either(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    spent = reply(429, b"", "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 2h0m0s")
    server = await raw_server(*[spent] * 6, reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert (result.status, result.attempts) == ("succeeded", 7)


async def test_a_parked_job_remembers_how_often_it_was_put_off(chat_job: Any) -> None:
    before, after = Trip(chat_job(), 1.0), Trip(chat_job(), 2.0)
    before.attempts, before.postponed = 5, 4
    after.remember(before.memory() or "")
    assert (after.attempts, after.postponed) == (5, 4)


@pytest.mark.promise(22)
@pytest.mark.parametrize(
    ("fault", "least_s", "most_s"),
    [
        ("429", 1.0, 1.0),
        ("429-plain", None, None),
        ("429-date", 0.5, 2.5),
        ("429-negative", None, None),
        ("429-junk", None, None),
        ("429-ms", 0.25, 0.25),
        ("429-llm-provider", 1.0, 1.0),
    ],
)
async def test_row_22_the_limiter_hears_a_429_s_wait_within_bounds(
    pipeline_to: Any, chat_job: Any, simulate: Any, free_limits: Any, fault: str, least_s: Any, most_s: Any
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert (result.error.code, result.attempts) == ("rate_limited", 2)
    asked_s = free_limits.refused[0]
    assert asked_s in (None, 0.0) if least_s is None else least_s <= asked_s <= most_s


@pytest.mark.promise(22)
@pytest.mark.parametrize("fault", ["529", "503-html"])
async def test_row_22_an_overloaded_provider_is_given_time(
    pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert (result.error.code, result.attempts) == ("server_error", 2)
    assert 0.0 <= clock.slept_s[0] <= 1.0


@pytest.mark.promise(23)
async def test_row_23_what_tls_refuses_is_tried_again_then_named(
    pipeline_to: Any, chat_job: Any, simulate: Any
) -> None:
    url = (await simulate()).url.replace("http:", "https:")
    async with pipeline_to(url) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2))
    assert (result.status, result.error.code, result.attempts) == ("failed", "connection", 2)
    assert "127.0.0.1" in result.error.message
    assert (result.suspected_double_payment, suspected("connection")) == (False, 0)


# -- what may have been paid for


@pytest.mark.promise(26)
@pytest.mark.covers("catalog", "timeout.total_s", "models.timeout")
@pytest.mark.parametrize("fault", ["hang", "drip"])
async def test_row_26_a_sent_call_that_timed_out_is_not_repeated(
    pipeline_to: Any, chat_job: Any, simulate: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url, **QUICK) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.attempts, simulator.stats()["calls"]) == (1, 1)
    assert (result.error.code, result.error.retryable) == ("timeout", True)
    assert "may have been paid for" in result.error.message and "repeat_timeouts" in result.error.message
    assert [attempt.suspected_payment for attempt in result.failed_attempts] == [True]
    assert (result.suspected_double_payment, suspected("timeout")) == (False, 1), "nothing followed"


@pytest.mark.covers("catalog", "providers.repeat_timeouts", "models.repeat_timeouts")
@pytest.mark.covers("option", "repeat_timeouts")
@pytest.mark.parametrize(
    ("provider", "model", "job", "calls"),
    [
        (True, None, None, 2),
        (True, False, None, 1),
        (False, True, None, 2),
        (False, True, False, 1),
        (False, None, True, 2),
    ],
)
async def test_repeat_timeouts_of_the_job_precedes_model_and_provider(
    pipeline_to: Any, chat_job: Any, simulate: Any, provider: bool, model: Any, job: Any, calls: int
) -> None:
    simulator = await simulate("hang")
    permitted = {"provider": {"repeat_timeouts": provider}, "repeat_timeouts": model}
    async with pipeline_to(simulator.url, **QUICK, **permitted) as pipeline:
        result = await pipeline.run(chat_job(max_attempts=2, repeat_timeouts=job))
    assert (result.attempts, simulator.stats()["calls"]) == (calls, calls)
    assert (result.suspected_double_payment, suspected("timeout")) == (calls == 2, calls)


async def test_a_stock_producers_job_may_permit_it_too(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate("hang")
    options = {"promptmill": {"repeat_timeouts": True, "max_attempts": 2}}
    async with pipeline_to(simulator.url, **QUICK) as pipeline:
        result = await pipeline.handle("chat", "j", [], {**chat_job().body, **options})
    assert (result.attempts, result.suspected_double_payment) == (2, True)


@pytest.mark.promise(26)
async def test_row_26_a_model_may_think_beyond_its_read_time_out(
    pipeline_to: Any, chat_job: Any, simulate: Any
) -> None:
    simulator = await simulate(latency_ms=400, jitter=0.0)
    timeout = {"total_s": 5, "connect_s": 5, "read_s": 0.1}
    async with pipeline_to(simulator.url, timeout=timeout) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts, simulator.stats()["calls"]) == ("succeeded", 1, 1)


async def test_an_answer_after_a_broken_call_is_flagged(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts, result.suspected_double_payment) == ("succeeded", 2, True)
    assert suspected("connection") == 1
    assert PromptResult.from_dict(result.to_dict()) == result


async def test_a_200_that_is_no_answer_may_have_been_paid_for(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(200, b"null"), reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.suspected_double_payment, suspected("bad_response")) == ("succeeded", True, 1)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_a_refusal_with_a_status_is_no_suspected_payment(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, status: int
) -> None:
    server = await raw_server(reply(status, b"{}"), reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts, result.suspected_double_payment) == ("succeeded", 2, False)
    assert counts.take() == {}


# -- deadlines and cancellation


@pytest.mark.covers("option", "deadline_s")
async def test_a_job_that_is_late_already_is_not_sent(
    pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any
) -> None:
    simulator = await simulate()
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job(deadline_at=clock.now_s))
    assert (result.status, result.error.code, result.attempts) == ("expired", "expired", 0)
    assert simulator.stats()["calls"] == 0


async def test_no_time_for_another_attempt(pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any) -> None:
    simulator = await simulate("429-huge")
    async with pipeline_to(simulator.url) as pipeline:
        result = await pipeline.run(chat_job(deadline_at=clock.now_s + 30))
    assert (result.status, result.error.code, result.attempts) == ("expired", "expired", 1)
    assert result.error.http_status == 429
    assert "rate_limited" in result.error.message
    assert clock.slept_s == []


async def test_a_job_with_time_enough_is_answered(pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any) -> None:
    simulator = await simulate()
    async with pipeline_to(simulator.url) as pipeline:
        assert (await pipeline.run(chat_job(deadline_at=clock.now_s + 30))).ok


async def test_cancelling_closes_the_request_at_once(
    pipeline_to: Any, chat_job: Any, simulate: Any, wait_until: Any
) -> None:
    simulator = await simulate("hang")
    async with pipeline_to(simulator.url) as pipeline:
        running = asyncio.create_task(pipeline.run(chat_job(deadline_at=2e9)))
        await wait_until(lambda: simulator.stats()["in_flight"] == 1, description="the call is in flight")
        running.cancel()
        await wait_until(lambda: simulator.stats()["cancelled"] == 1, description="it is cut", timeout_s=1.0)
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_cancelling_ends_a_wait_between_attempts(
    pipeline_to: Any, chat_job: Any, simulate: Any, wait_until: Any
) -> None:
    simulator = await simulate("500")
    patient = RetryPolicy(base_s=3_600.0, cap_s=3_600.0)
    async with pipeline_to(simulator.url, retry=patient, real_time=True) as pipeline:
        running = asyncio.create_task(pipeline.run(chat_job()))
        await wait_until(
            lambda: simulator.stats()["by_status"].get("500") == 1, description="the first attempt has failed"
        )
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


# -- models and keys


async def test_an_unknown_model_is_named_with_its_neighbours(pipeline_to: Any, chat_job: Any) -> None:
    async with pipeline_to("http://127.0.0.1:1/v1") as pipeline:
        job = PromptJob("j", "chat", "mm", {**chat_job().body, "model": "mm"})
        result = await pipeline.run(job)
    assert (result.error.code, result.attempts, result.model) == ("not_found", 0, "mm")
    assert "'m'" in result.error.message


async def test_a_missing_key_is_the_problem_of_the_job_that_needs_it(
    pipeline_to: Any, chat_job: Any, catalog_at: Any
) -> None:
    url = "http://127.0.0.1:1/v1"
    async with pipeline_to(url, keys=KeyRing.read(catalog_at(url), {})) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.error.code, result.attempts, result.error.retryable) == ("auth", 0, False)
    assert "P_KEY" in result.error.message


async def test_a_refused_key_is_named_by_its_variable(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate("401")
    advised: list[tuple[dict[str, Any], str]] = [
        ({}, "; check P_KEY"),
        ({"api_keys": []}, "; it wants one: name its variable in"),
    ]
    for provider, advice in advised:
        async with pipeline_to(simulator.url, provider=provider) as pipeline:
            assert advice in (await pipeline.run(chat_job())).error.message


@pytest.mark.covers("catalog", "providers.profile")
async def test_a_fragile_provider_gets_few_connections(pipeline_to: Any, chat_job: Any, simulate: Any) -> None:
    simulator = await simulate(latency_ms=20)
    async with pipeline_to(simulator.url, provider={"profile": "fragile"}) as pipeline:
        await asyncio.gather(*(pipeline.run(chat_job(f"job-{number}")) for number in range(25)))
    assert (simulator.stats()["peak_in_flight"], simulator.stats()["connections"]) == (10, 25)


async def test_a_providers_keys_take_turns(pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, completion()))
    ring = KeyRing({"p": [SecretStr("key-a"), SecretStr("key-b")]})
    async with pipeline_to(server.url, keys=ring) as pipeline:
        for _ in range(4):
            await pipeline.run(chat_job())
    used = [b"key-a" in request for request in server.requests]
    assert used == [True, False, True, False]


# -- what must never be told


async def test_neither_key_nor_prompt_leaves_through_an_error(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, key: str, prompt: str, caplog: Any
) -> None:
    echo = json.dumps({"error": {"message": f"bad key {key} for {prompt}", "type": prompt, "code": key}}).encode()
    server = await raw_server(reply(401, echo))
    with caplog.at_level(logging.DEBUG):
        async with pipeline_to(server.url) as pipeline:
            result = await pipeline.run(chat_job())
    assert result.error.code == "auth"
    assert key not in json.dumps(result.to_dict())
    assert "[key]" in result.error.provider_body
    assert prompt not in result.error.message
    assert key not in caplog.text
    assert prompt not in caplog.text


@pytest.mark.parametrize("fault", ["500", "close", "null", "401"])
async def test_no_failed_attempt_waits_for_the_garbage_collector(
    pipeline_to: Any, chat_job: Any, simulate: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url) as pipeline:
        gc.collect()
        gc.disable()
        try:
            before = failures_in_memory()
            await pipeline.run(chat_job())
            assert failures_in_memory() == before
        finally:
            gc.enable()


def failures_in_memory() -> list[Failure]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Failure)]


class _Broken:
    """Stands where the HTTP side does, and breaks."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def post(self, request: Any, **_: Any) -> Any:
        raise self.error


def broken_pipeline(error: BaseException, catalog: Any, clock: Any, limits: Any) -> Pipeline:
    broken: Any = _Broken(error)
    return Pipeline(
        catalog=catalog,
        http=broken,
        keys=KeyRing({"p": [SecretStr("k")]}),
        limits=limits,
        retry=RetryPolicy(),
        now=clock,
        sleep=clock.sleep,
        rng=random.Random(),
        time_limit=SoftTimeLimitExceeded,
    )


async def test_a_fault_of_ours_ends_the_job_and_tells_no_prompt(
    catalog_at: Any, chat_job: Any, clock: Any, prompt: str, caplog: Any, free_limits: Any
) -> None:
    pipeline = broken_pipeline(KeyError(prompt), catalog_at("http://h/v1"), clock, free_limits)
    result = await pipeline.run(chat_job())
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "internal")
    assert "KeyError" in result.error.message
    assert "job-1" in caplog.text
    assert "in post" in caplog.text
    assert prompt not in caplog.text + result.error.message


async def test_celerys_soft_time_limit_is_a_time_out(
    catalog_at: Any, chat_job: Any, clock: Any, free_limits: Any
) -> None:
    pipeline = broken_pipeline(SoftTimeLimitExceeded(3), catalog_at("http://h/v1"), clock, free_limits)
    result = await pipeline.run(chat_job())
    assert result.error is not None and result.error.code == "timeout"


# -- the shared limit


@pytest.mark.covers("option", "priority")
async def test_a_permit_is_settled_with_what_the_provider_counted(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any
) -> None:
    server = await raw_server(reply(200, completion(prompt_tokens=9, completion_tokens=5)))
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        await pipeline.run(chat_job(priority="bulk", tenant="acme"))
    assert free_limits.settled == [Usage(input_tokens=9, output_tokens=5)]
    assert (free_limits.asked[0]["priority"], free_limits.asked[0]["tenant"]) == ("bulk", "acme")


async def test_a_429_is_told_to_the_limiter_and_waited_for_there(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any, clock: Any
) -> None:
    server = await raw_server(reply(429, b"{}", "Retry-After: 7"), reply(200, completion()))
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.status, result.attempts) == ("succeeded", 2)
    assert free_limits.refused == [7.0]
    assert clock.slept_s in ([], [0.0])


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (400, "given back"),
        (401, "given back"),
        (429, "given back"),
        (408, "given up"),
        (500, "given up"),
        (200, "given up"),
    ],
)
async def test_a_failed_call_keeps_its_reservation_unless_refused(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any, status: int, end: str
) -> None:
    server = await raw_server(reply(status, b"{}"))
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        assert not (await pipeline.run(chat_job(max_attempts=1))).ok
    assert free_limits.settled == [end]


@pytest.mark.parametrize("fault", ["reset", "hang", "partial"])
async def test_a_broken_call_keeps_its_reservation(
    pipeline_to: Any, chat_job: Any, simulate: Any, free_limits: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    async with pipeline_to(simulator.url, limits=free_limits, **QUICK) as pipeline:
        await pipeline.run(chat_job(max_attempts=1))
    assert free_limits.settled == ["given up"]


@pytest.mark.parametrize(
    ("raised", "code"),
    [(TooLargeForLimit("tokens", cost=9, limit=5), "too_large"), (TooLate("no time"), "expired")],
)
async def test_a_job_that_can_never_be_sent_fails_at_once(
    pipeline_to: Any, chat_job: Any, free_limits: Any, raised: Exception, code: str
) -> None:
    free_limits.raises = [raised]
    async with pipeline_to("http://127.0.0.1:9/v1", limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.error.code, result.attempts) == (code, 0)


async def test_a_job_whose_turn_is_far_away_is_parked(pipeline_to: Any, chat_job: Any, free_limits: Any) -> None:
    free_limits.raises = [Parked(1_000_060.0, "the limit is used up for now")]
    async with pipeline_to("http://127.0.0.1:9/v1", limits=free_limits) as pipeline:
        with pytest.raises(Parked) as parked:
            await pipeline.run(chat_job())
    assert (parked.value.until_s, parked.value.memory) == (1_000_060.0, None)


async def test_a_parked_job_forgets_nothing_of_its_attempts(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any
) -> None:
    """The first call breaks off after it was sent, so it may have been paid for; then the limit is far away."""
    cut_off = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"
    server = await raw_server(cut_off, reply(500, b"{}"), reply(200, completion()))
    far = Parked(1_000_060.0, "the limit is used up for now")
    free_limits.raises = [None, far, far]
    job = chat_job(max_attempts=3)
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        with pytest.raises(Parked):
            await pipeline.run(job)
        once = far.memory
        with pytest.raises(Parked):
            await pipeline.run(job, parked=once)
        assert far.memory == once
        result = await pipeline.run(job, parked=once)
    assert (result.ok, result.attempts, result.suspected_double_payment) == (True, 3, True)
    assert [attempt.code for attempt in result.failed_attempts] == ["connection", "server_error"]


@pytest.mark.parametrize(
    "memory", ["", "{", "[]", "null", '{"attempts": 1}', '{"attempts": "x", "failed": [{"a": 1}]}']
)
async def test_an_unreadable_memory_leaves_the_suspicion(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, memory: str
) -> None:
    server = await raw_server(reply(200, completion()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job(), parked=memory)
    assert result.ok and result.suspected_double_payment


async def test_a_request_that_went_twice_is_one_attempt_and_flagged(pipeline_to: Any, chat_job: Any) -> None:
    """The server ends a connection of the pool when the second request comes; whether it has read it, nobody knows."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        number, body = len(connections) - 1, completion(prompt_tokens=1, completion_tokens=1)
        while await reader.read(2**20):
            connections[number] += 1
            if (number, connections[number]) == (0, 2):
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, pipeline_to(url) as pipeline:
        first, second = await pipeline.run(chat_job("job-1")), await pipeline.run(chat_job("job-2"))
    assert connections == [2, 1]
    assert (first.attempts, first.suspected_double_payment) == (1, False)
    assert (second.status, second.attempts, second.suspected_double_payment) == ("succeeded", 1, True)
    assert suspected("connection") == 1
