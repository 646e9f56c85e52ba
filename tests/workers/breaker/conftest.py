"""A fleet of workers in one process: each has its own connections, breakers and pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from tasks.results import PromptResult
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.breaker import Breakers, Outage, SharedBreakers
from workers.breaker.health import Health
from workers.breaker.window import BreakerPolicy
from workers.pipeline.pipeline import Pipeline
from workers.redis.channel import Channel

POLICY = BreakerPolicy(failures=5, window_s=30.0, open_s=0.5)


@dataclass
class Worker:
    pipeline: Pipeline
    breakers: Breakers
    channel: Channel
    redis: Redis

    def health(self, model: str = "upstream-m") -> Health:
        return self.breakers.health("p", model)

    @property
    def outage(self) -> Outage | None:
        outages = self.health().outages
        return outages[-1] if outages else None

    @property
    def kind(self) -> str | None:
        return None if self.outage is None else self.outage.kind

    def start(self, jobs: list[Any]) -> list[asyncio.Task[PromptResult]]:
        return [asyncio.create_task(self.pipeline.run(job)) for job in jobs]


StartFleet = Callable[..., Awaitable[list[Worker]]]


@pytest.fixture
async def fleet(server: RedisServer, pipeline_to: Any) -> AsyncIterator[StartFleet]:
    """`workers = await fleet(url, count=4)`: with a Redis that is empty at the beginning."""
    async with AsyncExitStack() as stack:

        async def start(
            url: str,
            *,
            count: int,
            first: int = 0,
            policy: BreakerPolicy = POLICY,
            redis_url: str = server.url,
            **options: Any,
        ) -> list[Worker]:
            return [
                await _worker(stack, url, n, policy, redis_url, pipeline_to, options)
                for n in range(first, first + count)
            ]

        async with Redis.from_url(server.url) as redis:
            await redis.flushall()
        yield start


async def _worker(
    stack: AsyncExitStack,
    url: str,
    number: int,
    policy: BreakerPolicy,
    redis_url: str,
    pipeline_to: Any,
    options: dict[str, Any],
) -> Worker:
    redis = await stack.enter_async_context(Redis.from_url(redis_url, socket_timeout=1.0, socket_connect_timeout=1.0))
    channel = Channel(redis)
    shared = SharedBreakers(redis, policy, process=f"worker-{number}")
    breakers = Breakers(policy, now=time.time, shared=shared, hears=lambda: channel.hears)
    await stack.enter_async_context(breakers)
    channel.listen(redis_keys.BREAKER_CHANNEL, breakers.hear, hears_again=breakers.hear_again)
    await stack.enter_async_context(channel)
    pipeline = await stack.enter_async_context(pipeline_to(url, real_time=True, breakers=breakers, **options))
    await wait_until_async(lambda: channel.hears, description="the subscription")
    return Worker(pipeline, breakers, channel, redis)
