"""Ours and the others. Each is opened once in a process, and gives the coroutine that makes one call for a waiter."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from pyrate_limiter import Limiter, Rate, RedisBucket
from redis.asyncio import Redis

from config.catalog import Limits, Model
from tasks.results import Usage
from workers.limiter import LimiterRegistry

from .provider import Client
from .scenarios import Contestant, Scenario

__all__ = ["CONTESTANTS", "Once", "Part"]

POLL_S = 0.1
"""How often a waiter of a limiter that cannot wait asks again."""

LONGEST_OBEDIENCE_S = 5.0
"""How long the others' waiters obey a Retry-After: none of them tells the other waiters of it."""

Once = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Part:
    """One process's part of a scenario, and what it counts."""

    scenario: Scenario
    redis: Redis
    redis_url: str
    client: Client
    stale: int = 0
    """Slots of ours that could not be used in time."""


@asynccontextmanager
async def promptmill(part: Part) -> AsyncIterator[Once]:
    """Our limiter, as the pipeline uses it."""
    scenario = part.scenario
    limits = Limits(rpm=scenario.rpm, tpm=scenario.tpm, algorithm=scenario.told)
    model = Model(name="bench", provider="bench", upstream="bench", limits=limits)
    async with LimiterRegistry(part.redis, now=time.time) as registry:

        async def once(waiter: int) -> None:
            usage = _usage(scenario)
            cost = registry.estimate(model, input_chars=4 * usage.input_tokens, max_tokens=scenario.max_tokens)
            permit = await registry.admit(model, [None], cost=cost)
            status, retry_after_s = await part.client.call(waiter, usage.input_tokens + usage.output_tokens)
            if status == 429:
                permit.rate_limited(retry_after_s, {})
            else:
                permit.settle(usage)

        yield once
        # The benchmark alone looks inside. A process without waiters has no limiter.
        part.stale = sum(limiter.settlements.stale for limiter in registry._limiters.values())


@asynccontextmanager
async def split(part: Part) -> AsyncIterator[Once]:
    """Each process keeps to its share of the rate, evenly spaced, and knows of nobody."""
    gap_s = part.scenario.processes / part.scenario.permitted_per_s
    next_at = 0.0

    async def once(waiter: int) -> None:
        nonlocal next_at
        next_at = max(next_at + gap_s, time.monotonic())
        await asyncio.sleep(next_at - time.monotonic())
        await _call_and_obey(part, waiter)

    yield once


@asynccontextmanager
async def limits_library(part: Part) -> AsyncIterator[Once]:
    """`limits`: a moving window. It cannot wait, so its waiters poll."""
    item = RateLimitItemPerMinute(_rpm(part))
    limiter = MovingWindowRateLimiter(RedisStorage(f"async+{part.redis_url}", implementation="redispy"))

    async def once(waiter: int) -> None:
        while not await limiter.hit(item, "bench"):  # noqa: ASYNC110 - it has no way to wait
            await asyncio.sleep(POLL_S)
        await _call_and_obey(part, waiter)

    yield once


@asynccontextmanager
async def pyrate_limiter(part: Part) -> AsyncIterator[Once]:
    """`pyrate-limiter`: its bucket in Redis."""
    bucket = await RedisBucket.init([Rate(_rpm(part), 60_000)], part.redis, "bench")
    limiter = Limiter(bucket)

    async def once(waiter: int) -> None:
        while not await limiter.try_acquire_async("bench", blocking=False):  # noqa: ASYNC110 - its own wait holds a lock
            await asyncio.sleep(POLL_S)
        await _call_and_obey(part, waiter)

    yield once


CONTESTANTS: dict[Contestant, Callable[[Part], AbstractAsyncContextManager[Once]]] = {
    "Promptmill": promptmill,
    "split": split,
    "limits": limits_library,
    "pyrate-limiter": pyrate_limiter,
}


async def _call_and_obey(part: Part, waiter: int) -> None:
    status, retry_after_s = await part.client.call(waiter, 0)
    if status == 429:
        await asyncio.sleep(min(retry_after_s, LONGEST_OBEDIENCE_S))


def _rpm(part: Part) -> int:
    assert part.scenario.rpm is not None, "counts requests"
    return part.scenario.rpm


def _usage(scenario: Scenario) -> Usage:
    if not scenario.mean_output_tokens:
        return Usage()
    # Log-normal with sigma 1 has its mean at exp(mu + 1/2).
    output = random.lognormvariate(math.log(scenario.mean_output_tokens) - 0.5, 1.0)
    return Usage(input_tokens=random.randint(20, 80), output_tokens=min(scenario.max_tokens, int(output) + 1))
