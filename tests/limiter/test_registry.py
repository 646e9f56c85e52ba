"""Several workers' registries over a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from config.catalog import Limits, Model
from tasks.results import Usage
from workers.limiter import Cost, LimiterRegistry, MustPark, Permit, TooLargeForLimit, snapshot
from workers.limiter.rate import plan

from .conftest import RedisServer
from .ledger import Ledger

PATIENCE_S = 10.0
FAST = Limits(rpm=60_000, algorithm="sliding")


async def wait_until(condition: Callable[[], Any], *, description: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain: {description}"
        await asyncio.sleep(0.002)


def model(limits: Limits = FAST, name: str = "m") -> Model:
    return Model(name=name, provider="p", upstream=name, limits=limits)


@asynccontextmanager
async def registries(url: str, count: int = 2, **options: Any) -> AsyncIterator[list[LimiterRegistry]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            redis = await stack.enter_async_context(Redis.from_url(url))
            found.append(await stack.enter_async_context(LimiterRegistry(redis, now=time.time, **options)))
        await wait_until(lambda: all(each._channel.hears for each in found), description="the subscriptions")
        yield found


async def once(registry: LimiterRegistry, model_: Model, sent: list[float] | None = None, **options: Any) -> Permit:
    permit = await registry.admit(model_, options.pop("keys", [None]), cost=Cost(), **options)
    if sent is not None:
        sent.append(time.monotonic())
    permit.settle(Usage())
    return permit


async def test_two_workers_share_one_pace(client: Redis, redis_server: RedisServer) -> None:
    sent: list[float] = []
    async with registries(redis_server.url) as (one, other):
        await asyncio.gather(*(once(each, model(), sent) for each in (one, other) for _ in range(300)))
    pace = plan(FAST).dimensions[0]
    ledger = Ledger()
    ledger.add(sent)
    assert len(sent) == 600
    late_s = plan(FAST).use_by_s
    assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=pace.burst + pace.rate_per_s * late_s) <= 0


async def test_a_429_of_one_worker_stops_the_other(client: Redis, redis_server: RedisServer) -> None:
    async with registries(redis_server.url) as (one, other):
        await once(other, model())
        refused = await one.admit(model(), [None], cost=Cost())
        sent: list[float] = []
        running = [asyncio.create_task(once(other, model(), sent)) for _ in range(2_000)]
        await wait_until(lambda: len(sent) > 20, description="the other worker sends")
        refused_at = time.monotonic()
        refused.rate_limited(0.6, {})
        await wait_until(lambda: any(each > refused_at + 0.55 for each in sent), description="it goes on")
        assert not [each for each in sent if refused_at + 0.1 < each < refused_at + 0.6]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_pause_is_seen_from_outside(client: Redis, redis_server: RedisServer) -> None:
    async with registries(redis_server.url, count=1) as (registry,):
        permit = await registry.admit(model(), [SecretStr("sk-canary")], cost=Cost())
        permit.rate_limited(30.0, {})
        with pytest.raises(MustPark, match="asked for a pause"):
            await once(registry, model(), keys=[SecretStr("sk-canary")], park_after_s=5.0)
        view = None
        while view is None or view.paused_until is None:
            (view,) = await snapshot(client) or (None,)
        assert view.paused_until == pytest.approx(time.time() + 30, abs=5)
        assert view.permitted_per_minute["requests"] > 55_000
        assert view.used_last_minute["requests"] == 1
        assert view.refused == 1
        assert "canary" not in repr(view) + repr(registry) + repr(permit)
        assert not [key for key in await client.keys() if b"canary" in key]


async def test_the_key_that_is_free_first_is_used(client: Redis, redis_server: RedisServer) -> None:
    keys = [SecretStr("k1"), SecretStr("k2")]
    async with registries(redis_server.url, count=1) as (registry,):
        used = {(await once(registry, model(), keys=keys)).key for _ in range(20)}
        assert used == set(keys)
        first = await registry.admit(model(), keys, cost=Cost())
        first.rate_limited(60.0, {})
        after = {(await once(registry, model(), keys=keys)).key for _ in range(5)}
        assert after == set(keys) - {first.key}


async def test_who_waits_for_a_key_that_is_paused_goes_to_another(client: Redis, redis_server: RedisServer) -> None:
    keys = [SecretStr("k1"), SecretStr("k2")]
    slow = model(Limits(rpm=300, algorithm="sliding"))
    async with registries(redis_server.url, count=1) as (registry,):
        first = await registry.admit(slow, keys, cost=Cost())
        waiting = [asyncio.create_task(once(registry, slow, keys=keys)) for _ in range(8)]
        await asyncio.sleep(0)
        first.rate_limited(60.0, {})
        done = await asyncio.gather(*waiting)
        assert {permit.key for permit in done} == set(keys) - {first.key}


async def test_too_large_is_refused_before_redis_is_asked() -> None:
    async with Redis.from_url("redis://127.0.0.1:1/0") as nowhere:
        registry = LimiterRegistry(nowhere, now=time.time)
        with pytest.raises(TooLargeForLimit):
            await registry.admit(model(Limits(tpm=1_000)), [None], cost=Cost(2_000))
        await registry.__aexit__(None, None, None)


async def test_limits_are_learned_from_the_answers(client: Redis, redis_server: RedisServer) -> None:
    async with registries(redis_server.url, count=1) as (registry,):
        free = model(Limits())
        permit = await once(registry, free)
        permit.observe(
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-remaining-requests": "599",
                "x-ratelimit-reset-requests": "100ms",
            }
        )
        sent: list[float] = []
        await asyncio.gather(*(once(registry, free, sent) for _ in range(6)))
        assert max(sent) - min(sent) > 0.4


async def test_wiped_scripts_and_a_wiped_redis_are_survived(client: Redis, redis_server: RedisServer) -> None:
    async with registries(redis_server.url, count=1) as (registry,):
        await asyncio.gather(*(once(registry, model()) for _ in range(20)))
        await client.script_flush()
        await asyncio.gather(*(once(registry, model()) for _ in range(20)))
        # A pause has raised the epoch; a new state must not be taken for an old one.
        (await registry.admit(model(), [None], cost=Cost())).rate_limited(0.05, {})
        await asyncio.gather(*(once(registry, model()) for _ in range(5)))
        await client.flushall()
        await asyncio.wait_for(asyncio.gather(*(once(registry, model()) for _ in range(5))), PATIENCE_S)


async def test_redis_away_and_back(own_redis_server: RedisServer) -> None:
    async with registries(own_redis_server.url, count=1) as (registry,):
        await once(registry, model())
        own_redis_server.stop()
        await asyncio.wait_for(asyncio.gather(*(once(registry, model()) for _ in range(30))), PATIENCE_S)
        (limiter,) = registry._limiters.values()
        assert limiter.is_away
        own_redis_server.start()
        await wait_until(lambda: not limiter.is_away, description="it finds Redis again")
        await once(registry, model())
