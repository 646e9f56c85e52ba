"""Several workers' registries over a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from config.catalog import Limits, Model
from tasks.redis.cancellation import stop
from tasks.results import Usage
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.limiter import Cost, LimiterRegistry, Permit, TooLargeForLimit, snapshot
from workers.limiter.limiter import Limiter
from workers.limiter.rate import plan
from workers.prompt.parked import Parked

from .ledger import Ledger

PATIENCE_S = 10.0
FAST = Limits(rpm=60_000, algorithm="sliding")


def model(limits: Limits = FAST, name: str = "m") -> Model:
    return Model(name=name, provider="p", upstream=name, limits=limits)


@asynccontextmanager
async def registries(url: str, count: int = 2, **options: Any) -> AsyncIterator[list[LimiterRegistry]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            redis = await stack.enter_async_context(Redis.from_url(url))
            found.append(await stack.enter_async_context(LimiterRegistry(redis, now=time.time, **options)))
        await wait_until_async(lambda: all(each._channel.hears for each in found), description="the subscriptions")
        yield found


async def once(registry: LimiterRegistry, model_: Model, sent: list[float] | None = None, **options: Any) -> Permit:
    permit = await registry.admit(model_, options.pop("keys", [None]), cost=Cost(), **options)
    if sent is not None:
        sent.append(time.monotonic())
    permit.settle(Usage())
    return permit


async def test_the_outlook_is_the_wait_and_the_usual_answer(client: Redis, redis_server: RedisServer) -> None:
    slow = model(Limits(rpm=60, algorithm="bucket"), "slow")
    async with registries(redis_server.url, 1) as (registry,):
        cost = registry.estimate(slow, input_chars=400)
        assert (registry.expected_wait_s(slow, [None]), registry.forecast(slow).output_tokens) == (0.0, None)
        for _ in range(32):
            registry._limiters.estimator(slow).learn(cost, Usage(100, 7))
        waiting = [asyncio.create_task(once(registry, slow)) for _ in range(10)]
        await wait_until_async(lambda: registry.expected_wait_s(slow, [None]) > 1, description="a queue")
        forecast = registry.forecast(slow)
        assert forecast.output_tokens == 7
        assert forecast.input_tokens(400) == registry.estimate(slow, input_chars=400).input_tokens
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


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
        await wait_until_async(lambda: len(sent) > 20, description="the other worker sends")
        refused_at = time.monotonic()
        refused.rate_limited(1.5, {})
        await wait_until_async(lambda: any(each > refused_at + 1.45 for each in sent), description="it goes on")
        assert not [each for each in sent if refused_at + 0.75 < each < refused_at + 1.5]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_calls_without_an_answer_count_as_no_tokens(client: Redis, redis_server: RedisServer) -> None:
    """A call that was refused frees its capacity; of one that broke, nobody knows, so that it keeps it."""
    counted = model(Limits(rpm=60_000, tpm=1_000_000, algorithm="sliding"))
    cost = Cost(900, 100)

    async def used(registry: LimiterRegistry) -> tuple[int, int, float]:
        await wait_until_async(
            lambda: registry._limiters._by_model["p", "m"][0].settlements.unsaid_since == float("inf"),
            description="said",
        )
        (view,) = await snapshot(client)
        return view.settled, view.actual_tokens, view.used_last_minute["tokens"]

    async with registries(redis_server.url, count=1) as (registry,):
        for _ in range(10):
            (await registry.admit(counted, [None], cost=cost)).give_back()
        assert await used(registry) == (0, 0, 0.0)
        for _ in range(2):
            async with await registry.admit(counted, [None], cost=cost):
                pass
        assert await used(registry) == (0, 0, 2_000.0)
        async with await registry.admit(counted, [None], cost=cost) as permit:
            permit.settle(Usage(900, 10))
        assert await used(registry) == (1, 910, 2_910.0)


async def test_a_pause_is_seen_from_outside(client: Redis, redis_server: RedisServer) -> None:
    async with registries(redis_server.url, count=1) as (registry,):
        permit = await registry.admit(model(), [SecretStr("sk-canary")], cost=Cost())
        permit.rate_limited(30.0, {})
        with pytest.raises(Parked, match="asked for a pause"):
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


async def test_without_limits_nothing_is_estimated_but_counted(client: Redis, redis_server: RedisServer) -> None:
    free, keys = model(Limits()), [SecretStr("one"), SecretStr("other")]
    async with registries(redis_server.url, 1) as (registry,):
        assert registry.admit_free(free, keys) is None  # before Redis has said that it may be: `admit` asks
        for key in keys:
            await once(registry, free, keys=[key])
        before = registry.estimate(free, input_chars=400)
        used: list[Any] = []
        for _ in range(4):
            permit = registry.admit_free(free, keys)
            assert permit is not None
            used.append(permit.key)
            permit.settle(Usage(input_tokens=30, output_tokens=70))
        assert sorted(used, key=keys.index) == [keys[0], keys[0], keys[1], keys[1]]
        assert registry.estimate(free, input_chars=400) == before  # so few teach nothing

        async def are_listed() -> bool:
            return len(await snapshot(client)) == len(keys)

        await wait_until_async(are_listed, "both limiters are listed, beside what they do")
    views = await snapshot(client)
    assert sum(view.settled for view in views) == 6
    assert sum(view.actual_tokens for view in views) == sum(view.estimated_tokens for view in views) == 400
    assert sum(view.used_last_minute["tokens"] for view in views) == 400


async def test_keys_take_turns_whether_one_of_them_goes_free_or_not(client: Redis, redis_server: RedisServer) -> None:
    keys = [SecretStr("one"), SecretStr("other")]
    async with registries(redis_server.url, 1) as (registry,):
        for limits in (Limits(), FAST, Limits(max_in_flight=50)):
            asked = model(limits, f"m{limits.rpm}{limits.max_in_flight}")
            used: list[Any] = []
            for _ in range(8):
                permit = registry.admit_free(asked, keys)
                if permit is None:
                    permit = await registry.admit(asked, keys, cost=Cost())
                used.append(permit.key)
                permit.settle(Usage())
            assert [used.count(key) for key in keys] == [4, 4]


async def test_what_goes_free_teaches_how_long_answers_are(client: Redis, redis_server: RedisServer) -> None:
    free = model(Limits())
    async with registries(redis_server.url, 1) as (registry,):
        await once(registry, free)
        for _ in range(40):
            permit = registry.admit_free(free, [None])
            assert permit is not None
            permit.settle(Usage(input_tokens=100, output_tokens=50))
        assert registry.estimate(free, input_chars=400).output_tokens == 50


async def test_nobody_goes_free_past_a_limit_or_a_pause(client: Redis, redis_server: RedisServer) -> None:
    async with registries(redis_server.url, 1) as (registry,):
        assert registry.admit_free(model(FAST), [None]) is None
        free = model(Limits(), "free")
        await once(registry, free)
        refused = registry.admit_free(free, [None])
        assert refused is not None
        refused.rate_limited(5.0, {})
        assert registry.admit_free(free, [None]) is None


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


@pytest.mark.promise(47)
@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=6_000, tpm=6_000_000)], ids=["unknown", "stated"])
async def test_one_odd_limit_fails_nobody_and_makes_nobody_wait(
    client: Redis, redis_server: RedisServer, limits: Limits
) -> None:
    odd = {f"x-ratelimit-{part}-{name}": "1" for part in ("limit", "remaining") for name in ("requests", "tokens")}
    odd |= {"x-ratelimit-reset-requests": "60s", "x-ratelimit-reset-tokens": "1000000000"}
    async with registries(redis_server.url, count=1) as (registry,):

        async def call() -> Permit:
            cost = registry.estimate(model(limits), input_chars=400)
            permit = await registry.admit(model(limits), [None], cost=cost)
            permit.settle(Usage(100, 50))
            return permit

        for _ in range(3):
            permit = await call()
        permit.observe(odd)
        await asyncio.wait_for(asyncio.gather(*(call() for _ in range(20))), PATIENCE_S)
        permit.observe({**odd, "x-ratelimit-reset-tokens": "60s"})
        await asyncio.wait_for(asyncio.gather(*(call() for _ in range(20))), PATIENCE_S)


async def test_a_limit_that_one_worker_was_told_holds_in_the_others(client: Redis, redis_server: RedisServer) -> None:
    headers = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
    }
    async with registries(redis_server.url) as (one, other):
        free = model(Limits())
        await once(other, free)
        (await one.admit(free, [None], cost=Cost())).observe(headers)
        (limiter,) = other._limiters
        deadline = time.monotonic() + PATIENCE_S
        while not limiter.plan.limits_requests:
            assert time.monotonic() < deadline, "the other worker never hears of it"
            await once(other, free)
            await asyncio.sleep(0.01)
        assert limiter.plan == plan(Limits(rpm=600))


@pytest.mark.covers("catalog", "models.organisation_limits")
async def test_a_guess_of_the_output_never_makes_a_request_impossible(client: Redis, redis_server: RedisServer) -> None:
    headers = {
        "x-ratelimit-limit-tokens": "500",
        "x-ratelimit-remaining-tokens": "490",
        "x-ratelimit-reset-tokens": "1s",
    }
    async with registries(redis_server.url, count=1) as (registry,):
        unknown = model(Limits())
        above = model(Limits(output_tpm=900), name="other").model_copy(update={"organisation_limits": Limits(tpm=800)})
        assert registry.estimate(above, input_chars=400).output_tokens == 800 - 101
        assert registry.estimate(unknown, input_chars=400).output_tokens > 500
        (await once(registry, unknown)).observe(headers)
        await once(registry, unknown)  # nobody goes before Redis has heard of it
        cost = registry.estimate(unknown, input_chars=400)
        assert cost.input_tokens + cost.output_tokens == 500


async def test_each_tenant_waits_in_the_line_of_each_key(client: Redis, redis_server: RedisServer) -> None:
    keys = [SecretStr("k1"), SecretStr("k2")]
    slow = model(Limits(rpm=60, algorithm="sliding"))
    async with registries(redis_server.url, count=1) as (registry,):
        waiting = [
            asyncio.create_task(once(registry, slow, keys=keys, tenant=tenant))
            for _ in range(10)
            for tenant in ("a", "b")
        ]
        await asyncio.sleep(0)
        for limiter in registry._limiters:
            assert limiter.waiting_of("a", "normal") == pytest.approx(5, abs=1)
            assert limiter.waiting_of("b", "normal") == pytest.approx(5, abs=1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_leaving_does_not_wait_for_a_call_that_swallows_its_end(client: Redis, redis_server: RedisServer) -> None:
    ended: list[str] = []

    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600)
        ended.append("the first was swallowed")
        await asyncio.sleep(3_600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(stop(task), PATIENCE_S)
    assert task.cancelled() and ended


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


@asynccontextmanager
async def redis_goes_away(
    server: RedisServer, *, waiting: int, **options: Any
) -> AsyncIterator[tuple[Limiter, list[float]]]:
    """A worker that has used its limit loses Redis while so many wait; the instants at which they are sent."""
    steady = model(Limits(rpm=6_000, algorithm="sliding"))
    sent: list[float] = []
    async with registries(server.url, count=1, **options) as (registry,):
        await once(registry, steady)
        server.close()
        tasks = [asyncio.create_task(once(registry, steady, sent)) for _ in range(waiting)]
        (limiter,) = registry._limiters
        await wait_until_async(lambda: limiter.is_away, description="it notices that Redis is away")
        yield limiter, sent
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_degraded_continues_at_a_share_and_then_waits_for_redis(
    own_redis: RedisServer,
) -> None:
    async with redis_goes_away(own_redis, waiting=400, degraded_for_s=1.0) as (limiter, sent):
        away_at = asyncio.get_running_loop().time()
        await wait_until_async(
            lambda: time.monotonic() > away_at + 2.0, description="the second in which it goes on is over"
        )
        while_away = list(sent)
        assert 20 <= len(while_away) <= 0.8 * 100 + 3
        # Slots are leased up to a second and a half ahead, but not beyond the end.
        assert max(while_away) < away_at + 1.0 + limiter.plan.use_by_s + 0.1
        own_redis.start()
        await wait_until_async(lambda: len(sent) > len(while_away) + 20, description="it finds Redis again and goes on")
        assert not limiter.is_away


async def test_closed_sends_nothing_until_redis_is_back(own_redis: RedisServer) -> None:
    async with redis_goes_away(own_redis, waiting=20, when_away="closed") as (limiter, sent):
        away_at = time.monotonic()
        await wait_until_async(lambda: time.monotonic() > away_at + 1.0, description="the time of some calls is over")
        assert not sent
        own_redis.start()
        await wait_until_async(lambda: len(sent) == 20, description="it finds Redis again and sends everybody")
        assert not limiter.is_away


async def test_open_sends_everybody_while_redis_is_away(own_redis: RedisServer) -> None:
    async with redis_goes_away(own_redis, waiting=400, when_away="open") as (limiter, sent):
        await wait_until_async(lambda: len(sent) == 400, description="everybody is sent")
        assert limiter.is_away
        own_redis.start()
        await wait_until_async(lambda: not limiter.is_away, description="it finds Redis again")
