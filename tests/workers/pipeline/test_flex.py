"""The flex tier: half the price for who can wait, and no deadline missed for it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from config.settings import Http as HttpSettings
from tests.support.virtual_time import run_virtually
from workers.http.session import Http
from workers.pipeline.flex_policy import FlexPolicy
from workers.pipeline.pipeline import Pipeline
from workers.pipeline.retry_policy import RetryPolicy
from workers.pipeline.rungs.patience.flex import Flex
from workers.pipeline.trip import Shape
from workers.prompt.job import Options, PromptJob
from workers.prompt.parked import Parked
from workers.providers.keyring import KeyRing
from workers.simulator import SimulatorOptions, start
from workers.telemetry.counts import counts

PRICE = {"input": 1, "output": 10, "flex": 0.5, "priority": 2, "date": "2026-01-01", "source": "a test"}
FLEXIBLE = {"flex": True, "price": PRICE}
HOUR_S = 3_600.0


def completion(tier: str | None) -> bytes:
    answer: dict[str, Any] = {
        "choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 50},
    }
    return json.dumps(answer if tier is None else {**answer, "service_tier": tier}).encode()


def refused(message: str = "Resource unavailable", *, code: str | None = "resource_unavailable") -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}}).encode()


def asked_tiers(server: Any) -> list[str | None]:
    return [json.loads(request.partition(b"\r\n\r\n")[2]).get("service_tier") for request in server.requests]


def counted() -> dict[str, int]:
    return {name.partition(":")[2]: n for name, n in counts.take().items() if name.startswith("flex_calls_total")}


# -- who is sent by it


@pytest.mark.covers("catalog", "models.flex", "price.flex")
async def test_a_bulk_job_is_asked_for_by_flex(pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, completion("flex")))
    async with pipeline_to(server.url, **FLEXIBLE) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk"))
    assert asked_tiers(server) == ["flex"]
    assert (result.tier, result.cost_usd, result.attempts) == ("flex", 0.00075, 1)
    assert counted() == {"answered": 1}


@pytest.mark.parametrize(
    ("options", "tier"),
    [
        ({}, None),
        ({"deadline_s": 1_799}, None),
        ({"deadline_s": 1_801}, "flex"),
        ({"deadline_s": 1_801, "priority": "interactive"}, "flex"),
        ({"deadline_s": 1_100, "priority": "bulk"}, "flex"),
        ({"deadline_s": 600, "priority": "bulk"}, None),
        ({"deadline_s": HOUR_S, "submitted_at": None}, None),
    ],
)
async def test_only_who_has_time_is_sent_by_it(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, clock: Any, options: Any, tier: str | None
) -> None:
    if (deadline_s := options.pop("deadline_s", None)) is not None:
        options = {"submitted_at": clock.now_s, **options, "deadline_at": clock.now_s + deadline_s}
    server = await raw_server(reply(200, completion(None)))
    async with pipeline_to(server.url, **FLEXIBLE) as pipeline:
        result = await pipeline.run(chat_job(**options))
    assert asked_tiers(server) == [tier]
    assert (result.tier, result.cost_usd) == (("flex", 0.00075) if tier else ("standard", 0.0015))


async def test_a_tier_of_the_jobs_own_stays(pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, completion("default")), reply(200, completion("flex")))
    async with pipeline_to(server.url, **FLEXIBLE) as pipeline:
        first = await pipeline.run(chat_job(priority="bulk", body={"service_tier": "auto"}))
        second = await pipeline.run(chat_job(body={"service_tier": "flex"}))
    assert asked_tiers(server) == ["auto", "flex"]
    assert [(each.tier, each.cost_usd) for each in (first, second)] == [("standard", 0.0015), ("flex", 0.00075)]


@pytest.mark.covers("catalog", "price.priority")
@pytest.mark.parametrize(
    ("asked", "said", "tier", "cost_usd"),
    [
        ("priority", "priority", "priority", 0.003),
        ("priority", None, "priority", 0.003),
        ("priority", "default", "standard", 0.0015),
        (None, "priority", "priority", 0.003),
        (None, "default", "standard", 0.0015),
        (None, "on_demand", "standard", 0.0015),
        ("scale", "scale", "other", None),
        (None, "scale", "other", None),
    ],
)
async def test_each_tier_costs_what_the_price_list_says(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, asked: Any, said: Any, tier: str, cost_usd: Any
) -> None:
    """An account may have another tier for all its calls, which no body names."""
    server = await raw_server(reply(200, completion(said)))
    async with pipeline_to(server.url, **FLEXIBLE) as pipeline:
        result = await pipeline.run(chat_job(body={"service_tier": asked} if asked else {}))
    assert asked_tiers(server) == [asked]
    assert (result.tier, result.cost_usd) == (tier, cost_usd)


async def test_what_the_provider_says_it_served_is_what_it_costs(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(
        reply(200, completion("default")), reply(200, completion(None), "X-Gemini-Service-Tier: standard")
    )
    async with pipeline_to(server.url, **FLEXIBLE) as pipeline:
        results = [await pipeline.run(chat_job(priority="bulk")) for _ in range(2)]
    assert [(each.tier, each.cost_usd) for each in results] == [("standard", 0.0015)] * 2


async def test_without_its_factor_the_cost_is_unknown(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(200, completion("flex")))
    async with pipeline_to(server.url, flex=True, price={**PRICE, "flex": None}) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk"))
    assert (result.tier, result.cost_usd) == ("flex", None)


@pytest.mark.parametrize(
    ("flex", "options", "is_there"),
    [
        (True, {"priority": "bulk"}, True),
        (True, {"deadline_at": 9e9}, True),
        (True, {}, False),
        (False, {"priority": "bulk"}, False),
    ],
)
async def test_what_is_off_is_not_on_the_ladder(
    pipeline_to: Any, chat_job: Any, flex: bool, options: Any, is_there: bool
) -> None:
    async with pipeline_to("http://127.0.0.1:1/v1", flex=flex) as pipeline:
        rungs = pipeline.ladder(Shape.of(chat_job(**options), any_flex=flex)).rungs
    assert any(isinstance(rung, Flex) for rung in rungs) == is_there


@pytest.mark.covers("catalog", "timeout.flex_total_s")
@pytest.mark.parametrize(("latency_ms", "status"), [(400, "succeeded"), (4_000, "failed")])
async def test_a_flex_call_has_a_time_out_of_its_own(
    pipeline_to: Any, chat_job: Any, simulate: Any, latency_ms: float, status: str
) -> None:
    simulator = await simulate(flex_latency_ms=latency_ms, jitter=0)
    timeout = {"total_s": 0.2, "flex_total_s": 1.5}
    async with pipeline_to(simulator.url, **FLEXIBLE, timeout=timeout) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk"))
    assert (result.status, result.attempts) == (status, 1)
    assert [each.code for each in result.failed_attempts] == ([] if result.ok else ["timeout"]), "and is not paid twice"


async def test_a_response_goes_by_it_too(pipeline_to: Any, raw_server: Any, reply: Any) -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "fine"}]}]
    answer = {"object": "response", "status": "completed", "service_tier": "flex", "output": output}
    server = await raw_server(reply(200, json.dumps(answer).encode()))
    job = PromptJob("job-r", "respond", "m", {"model": "m", "input": "How many?"}, Options(priority="bulk"))
    async with pipeline_to(server.url, flex=True, provider={"apis": ["chat", "responses"]}) as pipeline:
        result = await pipeline.run(job)
    assert (result.status, result.tier, asked_tiers(server)) == ("succeeded", "flex", ["flex"])


# -- while it has no room


@pytest.mark.parametrize(
    "refusal",
    [
        (429, refused(), []),
        (429, refused("We're currently processing too many requests", code="rate_limit_exceeded"), []),
        (429, refused("Resource unavailable"), ["Retry-After: 7"]),
        (429, b"", []),
        (498, refused("Flex tier capacity exceeded", code="capacity_exceeded"), []),
        (503, refused("The model is overloaded", code=None), []),
    ],
)
async def test_a_refusal_is_no_limit_and_no_attempt(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any, clock: Any, refusal: Any
) -> None:
    status, body, headers = refusal
    server = await raw_server(*[reply(status, body, *headers)] * 6, reply(200, completion("flex")), reply(500, b""))
    async with pipeline_to(server.url, **FLEXIBLE, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk", max_attempts=1))
    assert (result.status, result.tier, result.attempts) == ("succeeded", "flex", 7)
    assert (free_limits.refused, free_limits.settled[:6]) == ([], ["given back"] * 6)
    assert [each.code for each in result.failed_attempts] == ["rate_limited"], "all of them in one"
    assert "refusals so far: 6" in result.failed_attempts[0].message
    assert (result.cost_usd, result.suspected_double_payment) == (0.00075, False)
    assert not pipeline.breakers.outages
    slept = clock.slept_s
    assert len(slept) == 6 and slept[-1] > slept[0] and all(2.5 <= pause <= 300 for pause in slept)


@pytest.mark.parametrize(
    "said",
    [
        {"message": "Rate limit reached for m on tokens per min (TPM): Limit 1000", "code": "rate_limit_exceeded"},
        {"message": "Slow down", "type": "requests"},
    ],
)
async def test_a_real_limit_is_a_limit_in_this_tier_too(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any, said: Any
) -> None:
    server = await raw_server(reply(429, json.dumps({"error": said}).encode()), reply(200, completion("flex")))
    async with pipeline_to(server.url, **FLEXIBLE, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk"))
    assert (result.tier, len(free_limits.refused)) == ("flex", 1)


async def test_without_room_a_job_changes_in_time_for_its_deadline(
    pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any
) -> None:
    simulator = await simulate("flex-full")
    began_at = clock.now_s
    async with pipeline_to(simulator.url, **FLEXIBLE) as pipeline:
        result = await pipeline.run(chat_job(submitted_at=began_at, deadline_at=began_at + HOUR_S))
    assert (result.status, result.tier) == ("succeeded", "standard")
    waited_s = clock.now_s - began_at
    assert HOUR_S - 900 - 120 - 300 <= waited_s <= HOUR_S - 900 - 120, "as long as a flex call could still end in time"
    assert result.failed_attempts[-1].next == "the standard tier: no time is left to wait for room"
    assert counted() == {"no_room": result.attempts - 1, "changed": 1}


async def test_a_bulk_job_without_a_deadline_has_a_patience(
    pipeline_to: Any, chat_job: Any, simulate: Any, clock: Any
) -> None:
    simulator = await simulate("flex-full")
    began_at = clock.now_s
    async with pipeline_to(simulator.url, **FLEXIBLE, flex_policy=FlexPolicy(patience_s=HOUR_S)) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk", max_attempts=2))
    assert (result.status, result.tier) == ("succeeded", "standard")
    assert HOUR_S - 300 <= clock.now_s - began_at <= HOUR_S


async def test_a_refused_job_parks_and_remembers(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, clock: Any
) -> None:
    server = await raw_server(reply(429, refused()), reply(429, refused()), reply(200, completion("flex")))
    async with pipeline_to(server.url, **FLEXIBLE, park_after_s=1.0) as pipeline:
        memory = None
        for no_room in (1, 2):
            with pytest.raises(Parked) as parked:
                await pipeline.run(chat_job(priority="bulk"), parked=memory)
            memory = parked.value.memory
            assert json.loads(memory or "")["no_room"] == [no_room, 1_000_000.0]
            clock.now_s = parked.value.until_s
        result = await pipeline.run(chat_job(priority="bulk", max_attempts=1), parked=memory)
    assert (result.status, result.attempts, len(result.failed_attempts)) == ("succeeded", 3, 1)


async def test_a_model_without_the_tier_is_named(pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any) -> None:
    error = {"error": {"message": "Invalid service_tier argument", "param": "service_tier"}}
    server = await raw_server(reply(400, json.dumps(error).encode()))
    async with pipeline_to(server.url, **FLEXIBLE) as pipeline:
        result = await pipeline.run(chat_job(priority="bulk"))
    assert result.error is not None and "`flex = true`" in result.error.message


async def test_a_job_that_asks_for_flex_itself_waits_between_tries(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, free_limits: Any, clock: Any
) -> None:
    server = await raw_server(reply(429, refused()), reply(200, completion("flex")))
    async with pipeline_to(server.url, limits=free_limits) as pipeline:
        result = await pipeline.run(chat_job(body={"service_tier": "flex"}))
    assert (result.status, free_limits.refused) == ("succeeded", [])
    assert clock.slept_s != [0.0], "nobody else is made to wait, so it has to wait by itself"


# -- all of it, on a clock of its own


@asynccontextmanager
async def simulated(catalog: Any, limits: Any, **options: Any) -> AsyncIterator[tuple[Any, Pipeline]]:
    loop = asyncio.get_running_loop()
    simulator = await start(SimulatorOptions(**options))
    async with Http(HttpSettings(limit=500)) as http:
        yield (
            simulator,
            Pipeline(
                catalog=catalog(simulator.url, **FLEXIBLE),
                http=http,
                keys=KeyRing({"p": [SecretStr("sk-0123456789abcdef")]}),
                limits=limits,
                park_after_s=5.0,
                retry=RetryPolicy(),
                now=loop.time,
                sleep=asyncio.sleep,
                rng=random.Random(7),
            ),
        )
    await simulator.stop()


async def until_done(pipeline: Pipeline, job: Any) -> Any:
    """As the broker does: a parked job comes back when it said so."""
    loop, memory = asyncio.get_running_loop(), None
    while True:
        try:
            return await pipeline.run(job, parked=memory)
        except Parked as parked:
            memory = parked.memory
            await asyncio.sleep(parked.until_s - loop.time())


@pytest.mark.promise(59)
@pytest.mark.parametrize(("refuses", "saved_least"), [(0.3, 0.45), (0.9, 0.3), (1.0, 0.0)])
def test_row_59_deadlines_are_kept_and_half_is_saved(
    catalog_at: Any, chat_job: Any, free_limits: Any, refuses: float, saved_least: float
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        options = {"latency_ms": 4_000, "flex_latency_ms": 90_000, "jitter": 1.0, "faults": {"flex-full": refuses}}
        async with simulated(catalog_at, free_limits, **options) as (simulator, pipeline):
            began_at = loop.time()
            jobs = [
                chat_job(
                    f"job-{n}",
                    body={"messages": [{"role": "user", "content": f"question {n}"}]},
                    submitted_at=began_at,
                    deadline_at=began_at + HOUR_S,
                )
                for n in range(60)
            ]
            results = await asyncio.gather(*(until_done(pipeline, job) for job in jobs))
            calls = simulator.stats()["calls"]
        assert {result.status for result in results} == {"succeeded"}
        assert loop.time() - began_at < HOUR_S
        assert not any(result.suspected_double_payment for result in results)
        # What was answered was answered once, and what it cost is what the provider would charge.
        assert sum(result.attempts for result in results) == calls
        charged = [result.usage.input_tokens * 1e-6 + result.usage.output_tokens * 1e-5 for result in results]
        paid = sum(result.cost_usd for result in results)
        share = {"flex": 0.5, "standard": 1.0}
        assert paid == pytest.approx(sum(cost * share[r.tier] for cost, r in zip(charged, results, strict=True)))
        assert 1 - paid / sum(charged) >= saved_least
        assert free_limits.refused == [], "no pause for the model"

    run_virtually(main())
