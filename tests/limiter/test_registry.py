"""Several workers' registries over a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from config.catalog import Limits, Model
from tasks.results import Usage
from workers.limiter import Cost, LimiterRegistry, MustPark, Permit, TooLargeForLimit, snapshot
from workers.limiter.headers import RateHeader
from workers.limiter.rate import plan
from workers.limiter.schedule import Ask, LimiterName, PauseReport, RedisSchedule

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


def schedule(client: Redis, limits: Limits, *, now: float, **options: Any) -> RedisSchedule:
    return RedisSchedule(client, LimiterName("p", "m", "k"), plan(limits), fixed_now=str(now), **options)


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


# ---- the scripts, case by case


def ask(process: str, seq: int, count: int, **fields: Any) -> Ask:
    return Ask(process=process, seq=seq, costs=[Cost()] * count, **fields)


async def test_a_cold_start_has_one_permit(client: Redis) -> None:
    limits = Limits(rpm=1_200, algorithm="sliding")
    grant = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 50, backlog=50))
    gap_s = 1 / plan(limits).dimensions[0].rate_per_s
    assert grant.slots[0] == pytest.approx(1_000.0)
    assert all(later - earlier > gap_s - 1e-5 for earlier, later in pairwise(grant.slots))


async def test_a_lost_state_begins_behind_what_may_be_out(client: Redis) -> None:
    limits = Limits(rpm=1_200)
    grant = await schedule(client, limits, now=1_000.0).acquire(
        Ask(process="a", seq=7, epoch=3, backlog=9, costs=[Cost()] * 9)
    )
    assert not grant.slots or grant.slots[0] >= 1_004.0
    assert grant.epoch == 3


async def test_the_day_s_allowance_stops_at_its_number(client: Redis) -> None:
    limits = Limits(rpm=60_000, rpd=10)
    first = await schedule(client, limits, now=86_400.0 * 100 + 10).acquire(ask("a", 1, 50))
    assert (len(first.slots), first.reason) == (10, "day")
    assert first.wait_s == pytest.approx(86_390.0)
    next_day = await schedule(client, limits, now=86_400.0 * 101 + 1).acquire(ask("a", 2, 5))
    assert len(next_day.slots) == 5


async def test_a_dead_process_s_calls_come_back_with_its_lease(client: Redis) -> None:
    limits = Limits(max_in_flight=10)
    dying = ask("dead", 1, 20)
    assert len((await schedule(client, limits, now=1_000.0).acquire(dying)).slots) == 10
    other = replace(dying, process="alive")
    assert not (await schedule(client, limits, now=1_011.0).acquire(other)).slots
    assert len((await schedule(client, limits, now=1_012.5).acquire(replace(other, seq=2))).slots) == 10


async def test_processes_that_wait_share_evenly(client: Redis) -> None:
    limits, got, asked = Limits(rpm=6_000, algorithm="sliding"), Counter[str](), Counter[str]()
    now = 1_000.0
    for step in range(400):
        now += 0.05
        # `greedy` asks three times as often.
        for process in ("greedy", *(("modest",) if step % 3 == 0 else ())):
            asked[process] += 1
            call = ask(process, asked[process], 256, backlog=500, epoch=1 if step else 0)
            got[process] += len((await schedule(client, limits, now=now).acquire(call)).slots)
    assert got["greedy"] / got["modest"] == pytest.approx(1.0, abs=0.1)


async def test_the_organisation_s_limit_stands_above_the_keys(client: Redis) -> None:
    terms = plan(FAST, organisation=Limits(rpm=600, algorithm="sliding"), keys=3)
    ledger = Ledger()
    for key in ("k1", "k2", "k3"):
        of_key = RedisSchedule(client, LimiterName("p", "m", key), terms, fixed_now="1000")
        ledger.add((await of_key.acquire(ask("a", 1, 99, backlog=99))).slots)
    (pace,) = (each for each in terms.dimensions if each.shared_by)
    assert len(ledger.entries) > 3
    assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=pace.burst) <= 0


async def test_the_end_of_a_schedule_can_be_given_back(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    first = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 20, backlog=20))
    leaving = Ask(process="a", seq=2, leaves=True, returned=first.slots[5:])
    await schedule(client, limits, now=1_000.0).acquire(leaving)
    other = await schedule(client, limits, now=1_000.0).acquire(ask("b", 1, 3))
    assert other.slots == pytest.approx(first.slots[5:8], abs=1e-4)


async def test_an_unknown_limit_is_cut_by_a_429_and_recovers(client: Redis) -> None:
    free = Limits()
    now = 1_000.0
    for seq in range(1, 31):
        await schedule(client, free, now=now + seq).acquire(Ask(process="a", seq=seq, went_free=10, epoch=int(seq > 1)))
    now += 31
    await schedule(client, free, now=now).pause(PauseReport(epoch=1, asked_s=2.0))
    capped = await schedule(client, free, now=now + 2).acquire(ask("a", 40, 256, backlog=500))
    assert capped.is_capped
    gap_s = capped.slots[1] - capped.slots[0]
    assert 1 / gap_s == pytest.approx(7.0, rel=0.1)
    later = await schedule(client, free, now=now + 72).acquire(ask("a", 41, 256, backlog=500))
    assert 1 / (later.slots[1] - later.slots[0]) == pytest.approx(7.0 * 1.01**70, rel=0.15)


async def test_headers_only_slow_down_where_somebody_else_has_used_the_key(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="fixed")
    told: Any = {"told": {"rpm": 600}}
    await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 5))
    own = RateHeader("requests", 600, 595, 50.0)
    calm = await schedule(client, limits, now=1_010.0, **told).acquire(
        Ask(process="a", seq=2, costs=[Cost()], headers=[own], epoch=1)
    )
    assert calm.slots[0] == pytest.approx(1_010.0)
    foreign = RateHeader("requests", 600, 50, 40.0)
    slowed = await schedule(client, limits, now=1_020.0, **told).acquire(
        Ask(process="a", seq=3, costs=[Cost()], headers=[foreign], epoch=1)
    )
    assert not slowed.slots
    assert slowed.wait_s == pytest.approx(40 - 50 / plan(limits).dimensions[0].rate_per_s, abs=0.5)
