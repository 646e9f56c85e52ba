"""Routes and fallbacks through the composition root, with the real limiter on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from config.catalog import load_catalog
from tasks import PromptQueue
from tasks.errors import UnknownModel
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.celery.app import app
from workers.celery.runtime import current, lifespan
from workers.commands.doctor import examine_chains
from workers.pipeline.offers import offers, with_api

CATALOG = """
[providers.pa]
base_url = "{a}"
api_keys = ["A_KEY"]
[providers.pb]
base_url = "{b}"
api_keys = ["B_KEY"]
[models.a]
provider = "pa"
fallbacks = ["b"]
limits = {{ {limits} }}
price = {{ input = 1, output = 10, date = 2026-01-01, source = "a test" }}
[models.b]
provider = "pb"
price = {{ input = 2, output = 1, date = 2026-01-01, source = "a test" }}
[routes.auto]
rules = [{{ when = {{ tag = "hard" }}, model = "a" }}]
targets = ["a", "b"]
choose = "{choose}"
"""


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture
def deployment(deployment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two providers, each with a key."""
    deployment.setenv("PROMPTMILL_RETRY__BASE_S", "0.01")
    deployment.setenv("A_KEY", "sk-one-4d1f")
    deployment.setenv("B_KEY", "sk-two-88e0")
    return deployment


@pytest.fixture
def write(deployment: object) -> Callable[..., None]:
    def to_disk(a: str = "http://127.0.0.1:1/v1", b: str = "http://127.0.0.1:1/v1", **values: str) -> None:
        terms = {"limits": "", "choose": "first", **values}
        Path("catalog.toml").write_text(CATALOG.format(a=a, b=b, **terms))

    return to_disk


async def run(job_id: str, model: str, prompt: str = "How many?", **options: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "promptmill": options}
    return await current().handle("chat", job_id, [], body)


async def test_clients_and_workers_know_routes_like_models(
    deployment: pytest.MonkeyPatch, write: Any, client: Redis, server: RedisServer
) -> None:
    write()
    deployment.delenv("A_KEY")
    async with lifespan(app):
        announced = set(await client.zrange(redis_keys.MODELS, 0, -1))
        offered = offers.now()
        async with PromptQueue(server.url) as queue:
            messages = [{"role": "user", "content": "Hello"}]
            await queue.submit(model="auto", messages=messages, fallbacks=["pa/own-name"])
            with pytest.raises(UnknownModel, match="Did you mean auto"):
                await queue.submit(model="atuo", messages=messages)
            with pytest.raises(UnknownModel, match="fallbacks: no worker offers 'c'"):
                await queue.submit(model="a", messages=messages, fallbacks=["c"])
    assert {"a", "b", "auto"} <= announced
    assert {"b", with_api("b", "chat"), "auto"} <= offered, "one of its models can be called here"
    assert not {"a", with_api("a", "chat"), with_api("b", "responses")} & offered


async def test_while_a_provider_is_down_another_answers_all(write: Any, simulate: Any) -> None:
    a, b = await simulate("503"), await simulate()
    write(a.url, b.url)
    async with lifespan(app):
        results = await asyncio.gather(*(run(f"job-{number}", "a") for number in range(100)))
    assert Counter((each.status, each.answered_by) for each in results) == {("succeeded", "pb/b"): 100}
    assert b.stats()["calls"] == 100
    assert a.stats()["calls"] < 300, "once the breaker has opened, no job makes the attempts that it has left"


async def test_jobs_beyond_a_limit_go_on_before_their_deadline(write: Any, simulate: Any) -> None:
    a, b = await simulate(), await simulate()
    write(a.url, b.url, limits='rpm = 60, algorithm = "bucket"')
    async with lifespan(app):
        jobs = (run(f"job-{number}", "a", submitted_at=time.time(), deadline_s=8) for number in range(20))
        results = await asyncio.gather(*jobs)
    by = Counter((each.status, each.answered_by) for each in results)
    assert by.keys() == {("succeeded", "pa/a"), ("succeeded", "pb/b")}
    assert a.stats()["calls"] == by["succeeded", "pa/a"] <= 6, "what waited for a left b half of the time"
    assert a.stats()["rate_limited"] == 0


async def test_jobs_in_a_hurry_do_not_wait_for_a_far_turn(write: Any, simulate: Any) -> None:
    a, b = await simulate(), await simulate()
    write(a.url, b.url, limits='rpm = 60, algorithm = "bucket"')
    async with lifespan(app):
        since = time.monotonic()
        jobs = (run(f"job-{number}", "a", fallback_on=["rate_limited"]) for number in range(30))
        results = await asyncio.gather(*jobs)
        took_s = time.monotonic() - since
    by = Counter((each.status, each.answered_by) for each in results)
    assert by.keys() == {("succeeded", "pa/a"), ("succeeded", "pb/b")}
    assert took_s < 15, "29 s at the pace of a"


async def test_the_cheapest_by_the_limiters_own_estimate(write: Any, simulate: Any) -> None:
    a, b = await simulate(output_tokens=5), await simulate(output_tokens=5)
    write(a.url, b.url, choose="cheapest")
    async with lifespan(app):
        short = await run("short", "auto")
        long = await run("long", "auto", "x" * 40_000)
        hard = await run("hard", "auto", tag="hard")
    assert short.answered_by == "pb/b", "of a short prompt, what counts is the output: 1 against 10"
    assert long.answered_by == "pa/a", "of a long one, the input: 1 against 2"
    assert (hard.answered_by, hard.route["rule"]) == ("pa/a", 1)
    assert hard.cost_usd == pytest.approx((hard.usage.input_tokens + 10 * hard.usage.output_tokens) / 1e6)


def test_doctor_names_models_that_jobs_pass_over(deployment: pytest.MonkeyPatch, write: Any) -> None:
    write()
    path = Path("catalog.toml")
    assert examine_chains(load_catalog(path)) == []
    deployment.delenv("B_KEY")
    some = {finding.subject: finding.text for finding in examine_chains(load_catalog(path))}
    assert some == {
        "route auto": "no key for b: jobs go on to the others",
        "fallbacks of a": "none of its models has a key here: b",
    }
