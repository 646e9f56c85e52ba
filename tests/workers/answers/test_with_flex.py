"""Equal prompts of which some may wait for a flex tier."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.redis_server import RedisServer
from workers.pipeline.pipeline import Pipeline
from workers.prompt.job import PromptJob, parse
from workers.prompt.parked import Parked

from .fleet import answers_of


def chat(job_id: str, **options: Any) -> PromptJob:
    body = {"model": "m", "messages": [{"role": "user", "content": "How many?"}]}
    return parse("chat", job_id, [], {**body, "promptmill": {"cache_ttl_s": 60, **options}}, now=time.time())


@pytest.fixture
def worker(server: RedisServer, client: Any, pipeline_to: Any) -> Any:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Pipeline]:
        async with Redis.from_url(server.url) as redis:
            options = {"flex": True, "park_after_s": 1.0, "real_time": True}
            async with answers_of(redis) as answers, pipeline_to(url, answers=answers, **options) as pipeline:
                yield pipeline

    return make


async def test_who_waits_for_room_holds_up_nobody(worker: Any, simulate: Any) -> None:
    simulator = await simulate("flex-full")
    async with worker(simulator.url) as pipeline:
        with pytest.raises(Parked) as waits:
            await pipeline.run(chat("bulk-1", priority="bulk"))
        assert waits.value.follows is None
        hurried = await pipeline.run(chat("hurried"))
        assert (hurried.tier, hurried.cached) == ("standard", False)
        # Its equal asks for itself: the first has given the lead back.
        with pytest.raises(Parked) as asks:
            while True:
                try:
                    await pipeline.run(chat("bulk-2", priority="bulk"))
                except Parked as parked:
                    if parked.follows is None:
                        raise
        assert asks.value.reason == waits.value.reason
        assert simulator.stats()["calls"] == 3


async def test_those_that_may_wait_share_with_each_other(worker: Any, simulate: Any) -> None:
    simulator = await simulate()
    async with worker(simulator.url) as pipeline:
        results = [await pipeline.run(chat(f"job-{n}", priority="bulk")) for n in range(2)]
        hurried = await pipeline.run(chat("hurried"))
    assert [(each.cached, each.tier) for each in results] == [(False, "flex"), (True, None)]
    assert (hurried.cached, hurried.tier) == (False, "standard")
