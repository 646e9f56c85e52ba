"""Hundreds of limiters in one process, and names that users make up."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from config.catalog import Limits
from tasks.redis.address import Address
from tasks.results import Usage
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.limiter import LimiterRegistry, snapshot
from workers.limiter.registry import limiters
from workers.limiter.shared.scripts import ACQUIRE
from workers.redis.link import MOST_CONNECTIONS, Link

from .test_registry import model as model_of
from .test_registry import once

TOLD = {
    "x-ratelimit-limit-requests": "6000",
    "x-ratelimit-remaining-requests": "5999",
    "x-ratelimit-reset-requests": "10ms",
}


@asynccontextmanager
async def opened(server: RedisServer, named: Collection[str] | None = None) -> AsyncIterator[LimiterRegistry]:
    """With the client of a worker."""
    redis = Address.of(server.url).async_client(socket_timeout=5.0, socket_connect_timeout=5.0)
    async with redis, LimiterRegistry(redis, now=time.time, named=named) as found:
        yield found


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


async def test_two_hundred_limited_models_share_a_few_connections(
    client: Redis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(await client.client_list())
    async with opened(redis_server) as limits:
        models = [model_of(Limits(rpm=600), f"m{number}") for number in range(200)]
        await asyncio.gather(*(once(limits, each) for each in models for _ in range(3)))
        # The subscription and the list of limiters have one each.
        assert len(await client.client_list()) - before <= MOST_CONNECTIONS + 2
        assert len(await snapshot(client)) == 200
    assert "away" not in caplog.text


async def test_twenty_thousand_made_up_names_leave_nothing_behind(client: Redis, redis_server: RedisServer) -> None:
    async def call(limits: LimiterRegistry, number: int) -> None:
        made_up = model_of(Limits(), f"made-up-{number}")
        permit = limits.admit_free(made_up, [None])
        if permit is None:
            cost = limits.estimate(made_up, input_chars=400)
            permit = await limits.admit(made_up, [None], cost=cost)
        permit.observe({})
        permit.settle(Usage(100, 50))

    async with opened(redis_server, named=["m"]) as limits:
        for number in range(500):
            await call(limits, number)
        bytes_before, keys_before = resident_bytes(), await client.dbsize()
        for number in range(500, 20_500):
            await call(limits, number)
        assert await client.dbsize() <= keys_before + 4
        assert resident_bytes() - bytes_before < 8_000_000
        assert len(limits._limiters._by_name) == len(limits._limiters._offers) == 1


async def test_a_made_up_name_with_limits_gets_a_limiter_of_its_own(client: Redis, redis_server: RedisServer) -> None:
    async with opened(redis_server, named=["m"]) as limits, opened(redis_server, named=["m"]) as other:
        await wait_until_async(lambda: limits._channel.hears and other._channel.hears, description="the subscriptions")
        told, refused, free = (model_of(Limits(), name) for name in ("told", "refused", "free"))
        for each in (told, refused, free):
            await once(limits, each)
            await once(other, each)
        (await once(limits, told)).observe(TOLD)
        (await once(limits, free)).observe({})
        permit = await limits.admit(refused, [None], cost=limits.estimate(refused, input_chars=4))
        permit.rate_limited(20.0, {})
        await wait_until_async(
            lambda: ("p", "refused") in other._naming._has_limits, description="the other hears of the pause"
        )
        paused = [asyncio.create_task(once(each, refused)) for each in (limits, other)]
        for each in (free, told):
            await once(limits, each)
        assert not any(task.done() for task in paused)
        for task in paused:
            task.cancel()
        await asyncio.wait(paused)
        assert {str(name) for name in limits._limiters._by_name} == {"p:*:none", "p:told:none", "p:refused:none"}
        assert limits._limiters._by_name[
            next(n for n in limits._limiters._by_name if n.model == "told")
        ].plan.limits_requests


async def test_idle_limiters_are_closed_and_opened_again(
    client: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiters, "MOST_IDLE", 20)
    limited = [model_of(Limits(rpm=600), f"m{number}") for number in range(60)]
    async with opened(redis_server) as limits:
        kept = limits._limiters
        held = await limits.admit(limited[0], [None], cost=limits.estimate(limited[0], input_chars=4))
        tasks_before = len(asyncio.all_tasks())
        await asyncio.gather(*(once(limits, each) for each in limited[1:50]))

        def idle() -> int:
            return sum(each.idle_since < float("inf") for each in kept._by_name.values())

        await wait_until_async(lambda: idle() == 49, description="Redis knows all of it")
        await once(limits, limited[50])
        await wait_until_async(lambda: not kept._closing, description="those that were closed have taken leave")
        assert len(kept._by_name) == len(kept._offers) == len(kept._by_text) == 20
        assert len(asyncio.all_tasks()) - tasks_before <= 20
        assert held._limiter in kept._by_name.values()  # in use
        held.settle(Usage())
        await asyncio.wait_for(asyncio.gather(*(once(limits, each) for each in limited)), 5.0)
        await wait_until_async(lambda: idle() == 60, description="Redis knows all of it again")
        kept._close_idle(for_s=0.0, most=0)
        assert not kept._by_name and not kept._offers and not kept._by_model


# ---- the link


class Broken:
    """A client whose every exchange fails as told."""

    def __init__(self, error: BaseException, replies: Sequence[Any] = ()) -> None:
        self.error = error

    def pipeline(self, **options: Any) -> Any:
        raise self.error


async def test_a_failure_reaches_each_caller_and_none_is_unseen() -> None:
    loop, unseen = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    link = Link(Broken(RedisConnectionError("cut")))  # type: ignore[arg-type]  # as much of a client as is used
    calls = [asyncio.create_task(link.run(ACQUIRE, [], [])) for _ in range(150)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()  # some give up in the moment in which they fail
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} <= {RedisConnectionError, asyncio.CancelledError}
    del calls, results
    gc.collect()
    await asyncio.sleep(0)
    assert not unseen


async def test_scripts_that_redis_does_not_know_are_sent_once(client: Redis) -> None:
    await client.script_flush()
    link = Link(client)
    replies = await asyncio.gather(*(link.run(ACQUIRE, [], []) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(reply, Exception) and not isinstance(reply, NoScriptError) for reply in replies)
    assert await client.script_exists(ACQUIRE.sha) == [1]
