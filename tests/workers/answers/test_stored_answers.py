"""Answers that are stored: for whom, for how long, how many, and what a job says that was given one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from config.settings import get_settings
from tasks.results import PromptResult
from tests.support.raw_server import http_reply
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.answers.courier import TIMEOUT_S
from workers.answers.memory import OVERHEAD_BYTES, Memory
from workers.cli import app
from workers.pipeline.pipeline import Pipeline
from workers.pipeline.rungs.answers import Answers
from workers.pipeline.trip import Shape
from workers.prompt.job import PromptJob, parse
from workers.prompt.parked import Parked
from workers.telemetry.counts import counts

from .fleet import answers_of

PRICE = {"input": 1, "output": 10, "date": "2026-01-01", "source": "a test"}


def chat(job_id: str, content: str = "How many?", *, body: dict[str, Any] | None = None, **options: Any) -> PromptJob:
    messages = [{"role": "user", "content": content}]
    known = {"model": "m", "messages": messages, **(body or {}), "promptmill": {"cache_ttl_s": 60, **options}}
    return parse("chat", job_id, [], known, now=time.time())


async def run(pipeline: Pipeline, job: PromptJob) -> PromptResult:
    """As a worker does: a job that waits for an equal one comes again. Redis has heard of its end."""
    memory = None
    while True:
        try:
            result = await pipeline.run(job, parked=memory)
        except Parked as again:
            memory = again.memory
            await asyncio.sleep(0.01)
        else:
            await wait_until_async(lambda: store_of(pipeline)._courier._sender is None, "all is said")
            return result


def store_of(pipeline: Pipeline) -> Any:
    return next(rung._store for rung in pipeline.rungs if isinstance(rung, Answers))


@pytest.fixture
def worker(server: RedisServer, client: Any, pipeline_to: Any) -> Any:
    """A worker process: its pipeline."""

    @asynccontextmanager
    async def make(
        url: str,
        *,
        redis_url: str | None = None,
        memory_bytes: int = 10**7,
        redis_bytes: int = 10**7,
        **options: Any,
    ) -> AsyncIterator[Pipeline]:
        async with Redis.from_url(redis_url or server.url) as redis:
            answers = answers_of(redis, memory_bytes=memory_bytes, redis_bytes=redis_bytes)
            async with answers, pipeline_to(url, answers=answers, real_time=True, **options) as pipeline:
                yield pipeline

    return make


async def test_an_equal_prompt_costs_nothing(worker: Any, simulate: Any) -> None:
    provider = await simulate()
    async with worker(provider.url, price=PRICE) as pipeline, worker(provider.url, price=PRICE) as another:
        first = await run(pipeline, chat("first"))
        found = [
            await run(pipeline, chat("memory", metadata={"row": 7})),
            await run(another, chat("redis")),
            await run(another, chat("its-memory")),
        ]
    assert provider.stats()["calls"] == 1
    assert (first.cached, first.saved_usd, first.attempts) == (False, None, 1)
    assert first.cost_usd and first.cost_usd > 0
    for each in found:
        assert (each.text, each.response, each.answered_by) == (first.text, first.response, first.answered_by)
        assert (each.cached, each.cost_usd, each.saved_usd, each.attempts) == (True, 0.0, first.cost_usd, 0)
        assert each.usage.input_tokens == each.usage.output_tokens == 0
    assert [each.id for each in found] == ["memory", "redis", "its-memory"]
    assert found[0].metadata == {"row": 7}
    counted = dict(counts.take())
    assert {name: n for name, n in counted.items() if name.startswith("cache_lookups")} == {
        "cache_lookups_total:missed": 1,
        "cache_lookups_total:memory": 2,
        "cache_lookups_total:redis": 1,
    }
    assert counted["cache_saved_usd_total:answers"] == pytest.approx(3e6 * first.cost_usd, abs=3)


@pytest.mark.covers("option", "cache_ttl_s")
async def test_a_job_says_how_old_an_answer_may_be(worker: Any, simulate: Any, wait_until: Any) -> None:
    provider = await simulate()
    async with worker(provider.url) as pipeline, worker(provider.url, memory_bytes=0) as another:
        await run(pipeline, chat("first", cache_ttl_s=1_000))
        began = time.time()
        await wait_until(lambda: time.time() > began + 0.2, "it is older than that")
        assert (await run(pipeline, chat("old enough", cache_ttl_s=500))).cached
        assert (await run(another, chat("old enough", cache_ttl_s=500))).cached
        assert not (await run(pipeline, chat("too old", cache_ttl_s=0.1))).cached
        assert (await run(another, chat("fresh", cache_ttl_s=100))).cached, "the new one lives as long as the old would"
        assert not (await run(pipeline, chat("bypass", cache_ttl_s=0))).cached
    assert provider.stats()["calls"] == 3


async def test_an_answer_ends(worker: Any, client: Any, simulate: Any, wait_until: Any) -> None:
    provider = await simulate()
    async with worker(provider.url) as pipeline:
        await run(pipeline, chat("first", cache_ttl_s=0.2))
        await wait_until(lambda: not client.keys("pm:answer:*"), "it is gone from Redis")
        assert not (await run(pipeline, chat("second", cache_ttl_s=100))).cached
    (key,) = client.keys("pm:answer:*")
    assert 90_000 < client.pttl(key) <= 100_000
    assert 90_000 < client.pttl("pm:answers") <= 100_000


@pytest.mark.covers("option", "sample")
async def test_each_sample_has_an_answer_of_its_own(worker: Any, simulate: Any) -> None:
    provider = await simulate()
    async with worker(provider.url) as pipeline:
        cached = [(await run(pipeline, chat(f"j{i}", sample=i % 3))).cached for i in range(6)]
    assert (cached, provider.stats()["calls"]) == ([False] * 3 + [True] * 3, 3)


@pytest.mark.promise(30)
async def test_tenants_share_nothing(worker: Any, simulate: Any) -> None:
    provider = await simulate()
    async with worker(provider.url) as pipeline:
        for tenant in ("a", "b", None):
            assert not (await run(pipeline, chat(f"of-{tenant}", tenant=tenant))).cached
        assert (await run(pipeline, chat("again", tenant="b"))).cached
    assert provider.stats()["calls"] == 3


def test_which_jobs_are_cached_without_asking() -> None:
    def caches(*, all_cache: bool, kind: Any = "chat", ttl_s: float | None = None, **body: Any) -> bool:
        known = {"model": "m", "messages": [{}], "input": "x", **body, "promptmill": {"cache_ttl_s": ttl_s}}
        return Shape.of(parse(kind, "id", [], known, now=0.0), all_cache=all_cache).caches

    assert not any(caches(all_cache=False, temperature=0, kind=kind) for kind in ("chat", "embed"))
    assert caches(all_cache=False, ttl_s=1)
    assert caches(all_cache=True, kind="embed")
    assert [caches(all_cache=True, temperature=value) for value in (0, 0.0, -0.0)] == [True] * 3
    assert not any(caches(all_cache=True, temperature=value) for value in (1, 0.1, False, None, "0"))
    assert not caches(all_cache=True)
    assert not caches(all_cache=True, temperature=0, ttl_s=0)


async def test_a_plain_job_meets_no_cache(worker: Any, client: Any, simulate: Any) -> None:
    provider = await simulate()
    async with worker(provider.url, cache_ttl_s=60) as pipeline:
        for number in range(2):
            assert not (await run(pipeline, chat(f"plain-{number}", cache_ttl_s=None))).cached
        await run(pipeline, chat("first", cache_ttl_s=None, body={"temperature": 0}))
        assert (await run(pipeline, chat("second", cache_ttl_s=None, body={"temperature": 0}))).cached
    assert provider.stats()["calls"] == 3
    assert len(client.keys("pm:answer:*")) == 1


@pytest.mark.parametrize(
    ("finish", "message", "is_kept"),
    [
        ("stop", {"content": "fine"}, True),
        ("tool_calls", {"content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}, True),
        ("length", {"content": "the beginn"}, False),
        ("content_filter", {"content": "the beginn"}, False),
        ("stop", {"content": None, "refusal": "I can't"}, False),
        (None, {"content": "fine"}, False),
        (["stop"], {"content": "fine"}, False),
    ],
)
async def test_only_whole_answers_are_kept(
    worker: Any, client: Any, raw_server: Any, finish: Any, message: Any, is_kept: bool
) -> None:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]}
    server = await raw_server(http_reply(200, json.dumps(body).encode()))
    async with worker(server.url) as pipeline:
        assert (await run(pipeline, chat("first"))).ok
    assert len(client.keys("pm:answer:*")) == int(is_kept)


async def test_embeddings_and_large_answers_come_back_as_they_were(worker: Any, client: Any, simulate: Any) -> None:
    provider = await simulate()
    texts = [f"text {number}" for number in range(40)]
    job = PromptJob("e1", "embed", "e", {"model": "e", "input": texts}, chat("x").options)
    async with worker(provider.url) as pipeline, worker(provider.url, memory_bytes=0) as another:
        first = await run(pipeline, job)
        again = [await run(each, replace(job, id="e2")) for each in (pipeline, another)]
    assert [(each.cached, each.response) for each in again] == [(True, first.response)] * 2
    (key,) = client.keys("pm:answer:*")
    assert client.strlen(key) < 0.6 * len(json.dumps(first.response)), "compressed"
    assert provider.stats()["calls"] == 1


async def test_redis_keeps_no_more_than_its_bytes(worker: Any, client: Any, simulate: Any) -> None:
    provider = await simulate(output_tokens=10)
    async with worker(provider.url, memory_bytes=0, redis_bytes=20_000) as pipeline:
        for number in range(40):
            await run(pipeline, chat(f"j{number}", f"Prompt {number}?"))
        kept = client.zrange("pm:answers", 0, -1)
        sizes = [int(member.split()[1]) for member in kept]
        assert sum(sizes) == int(client.hget("pm:answers:state", "bytes")) <= 20_000 < sum(sizes) + 2 * max(sizes)
        assert len(client.keys("pm:answer:*")) == len(kept) == client.zcard("pm:answers:end") < 40
        assert (await run(pipeline, chat("newest", "Prompt 39?"))).cached
        assert not (await run(pipeline, chat("oldest", "Prompt 0?"))).cached, "the oldest made room"


async def test_what_has_ended_takes_no_room(worker: Any, client: Any, simulate: Any, wait_until: Any) -> None:
    provider = await simulate(output_tokens=10)
    async with worker(provider.url, memory_bytes=0) as pipeline:
        for number in range(20):
            await run(pipeline, chat(f"j{number}", f"Prompt {number}?", cache_ttl_s=0.3))
        await wait_until(lambda: not client.keys("pm:answer:*"), "all have ended")
        await run(pipeline, chat("new", "Another?"))
    (member,) = client.zrange("pm:answers", 0, -1)
    assert int(client.hget("pm:answers:state", "bytes")) == int(member.split()[1])


async def test_an_answer_that_comes_again_is_counted_once(worker: Any, client: Any, simulate: Any) -> None:
    provider = await simulate(output_tokens=10)
    async with worker(provider.url) as pipeline:
        for number in range(3):
            await run(pipeline, chat(f"j{number}"))
            if number == 0:
                client.delete(*client.keys("pm:answer:*"))
            store_of(pipeline)._memory.clear()
    assert provider.stats()["calls"] == 2
    sizes = [int(member.split()[1]) for member in client.zrange("pm:answers", 0, -1)]
    assert sum(sizes) == int(client.hget("pm:answers:state", "bytes"))


async def test_a_full_redis_is_not_filled_further(worker: Any, own_redis: RedisServer, simulate: Any) -> None:
    provider = await simulate(latency_ms=50)
    with own_redis.client() as full:
        async with worker(provider.url, redis_url=own_redis.url, memory_bytes=0) as pipeline:
            await run(pipeline, chat("before"))
            full.config_set("maxmemory", 1)
            results = await asyncio.gather(*(run(pipeline, chat(f"j{number}", "Another?")) for number in range(5)))
            assert len(full.keys("pm:answer:*")) == 1
            full.config_set("maxmemory", 0)
            assert (await run(pipeline, chat("after"))).cached, "what was there serves on"
    assert {each.ok for each in results} == {True}
    assert provider.stats()["calls"] == 2, "equal prompts under way shared the answer that was not stored"


async def test_without_redis_jobs_go_on(worker: Any, own_redis: RedisServer, simulate: Any) -> None:
    provider = await simulate()
    async with worker(provider.url, redis_url=own_redis.url) as pipeline:
        await run(pipeline, chat("before"))
        own_redis.kill()
        began = time.monotonic()
        results = [await run(pipeline, chat(f"j{number}", f"Prompt {number}?")) for number in range(30)]
        assert (await run(pipeline, chat("again"))).cached, "what the process has in memory"
        assert time.monotonic() - began < 10, "they do not wait for Redis one by one"
    assert {each.ok for each in results} == {True}
    assert provider.stats()["calls"] == 31


async def test_a_silent_redis_costs_a_moment(worker: Any, own_redis: RedisServer, simulate: Any) -> None:
    provider = await simulate()
    async with worker(provider.url, redis_url=own_redis.url) as pipeline:
        await run(pipeline, chat("before"))
        with own_redis.frozen():
            began = time.monotonic()
            results = await asyncio.gather(*(pipeline.run(chat(f"j{n}", f"Prompt {n}?")) for n in range(50)))
            assert time.monotonic() - began < 5 * TIMEOUT_S, "they wait together, once"
    assert {each.ok for each in results} == {True}


def test_memory_forgets_what_was_used_longest_ago() -> None:
    now_s = [0.01]
    memory = Memory(3 * (OVERHEAD_BYTES + 100), redis_s=lambda: now_s[0])
    for name in "abc":
        memory.put(name, b"x" * 100, stored_ms=0, ends_ms=1_000)
    assert memory.get("a", ttl_s=1e6) == b"x" * 100
    memory.put("d", b"y" * 100, stored_ms=0, ends_ms=1_000)
    assert [memory.get(name, ttl_s=1e6) is not None for name in "abcd"] == [True, False, True, True]
    memory.put("a", b"z", stored_ms=0, ends_ms=1_000)
    assert memory.bytes == 3 * OVERHEAD_BYTES + 201
    assert memory.get("a", ttl_s=0.005) is None, "too old for this one"
    now_s[0] = 1.0
    assert memory.get("a", ttl_s=1e6) is None, "it has ended"
    memory.put("huge", b"x" * 10_000, stored_ms=0, ends_ms=1_000)
    assert len(memory) == 3, "one that has ended is dropped when its room is needed"
    memory.clear()
    assert (len(memory), memory.bytes) == (0, 0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: RedisServer) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", server.url)
    get_settings.cache_clear()

    def invoke(*arguments: str) -> Any:
        shown = CliRunner().invoke(app, ["cache", *arguments])
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout) if "--json" in arguments else shown.stdout

    yield invoke
    get_settings.cache_clear()


async def test_answers_are_shown_and_cleared(
    command: Any, worker: Any, client: Any, simulate: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.answers.answers.BEAT_S", 0.05)
    provider = await simulate()
    assert command("stats", "--json")["hit_rate"] is None
    async with worker(provider.url, price=PRICE) as pipeline:
        for number in range(30):
            await run(pipeline, chat(f"j{number}", f"Prompt {number % 10}?", tenant="acme" if number % 2 else "other"))
        for field, n in counts.take().items():
            client.hincrby("pm:counts", field, n)
        assert (await asyncio.to_thread(command, "stats", "--tenant", "acme", "--json"))["answers"] == 5
        assert (await asyncio.to_thread(command, "clear", "--tenant", "acme", "--json")) == {"deleted": 5}
        memory = store_of(pipeline)._memory
        await wait_until(lambda: not len(memory), "workers forget theirs")
        assert not (await run(pipeline, chat("acme's", "Prompt 1?", tenant="acme"))).cached
        assert (await run(pipeline, chat("other's", "Prompt 0?", tenant="other"))).cached
        stats = await asyncio.to_thread(command, "stats", "--json")
        assert stats["answers"] == 6 and stats["bytes"] > 6 * 500
        assert "Deleted 6 answers" in await asyncio.to_thread(command, "clear")
    assert not client.keys("pm:answer:*") and not client.exists("pm:answers", "pm:answers:end")
    shown = await asyncio.to_thread(command, "stats")
    assert "answers               0, 0.0 MB" in shown and "hit rate" in shown
