"""The cache's settings, through the composition root."""

from __future__ import annotations

from typing import Any

import pytest

from workers.celery.app import app
from workers.celery.runtime import current, lifespan
from workers.prompt.parked import Parked
from workers.telemetry.counts import counts


async def run(job_id: str, **options: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "How many?"}], "temperature": 0}
    memory = None
    while True:
        try:
            return await current().handle("chat", job_id, [], {**body, "promptmill": options}, parked=memory)
        except Parked as again:
            memory = again.memory


def found() -> dict[str, int]:
    return {name.partition(":")[2]: n for name, n in counts.take().items() if name.startswith("cache_lookups")}


@pytest.mark.covers("setting", "cache.ttl_s")
async def test_the_fleets_cache_time_serves_what_is_repeatable(deploy: Any, simulate: Any) -> None:
    provider = await simulate()
    deploy(provider.url, CACHE__TTL_S="60")
    async with lifespan(app):
        cached = [(await run(f"job-{number}")).cached for number in range(3)]
    assert (cached, provider.stats()["calls"]) == ([False, True, True], 1)


async def test_without_it_only_who_asks_is_served(deploy: Any, simulate: Any) -> None:
    provider = await simulate()
    deploy(provider.url)
    async with lifespan(app):
        cached = [(await run(f"job-{number}")).cached for number in range(2)]
        cached += [(await run(f"asks-{number}", cache_ttl_s=60)).cached for number in range(2)]
    assert (cached, provider.stats()["calls"]) == ([False, False, False, True], 3)


@pytest.mark.covers("setting", "cache.memory_mb")
async def test_a_process_may_keep_nothing(deploy: Any, simulate: Any, wait_until: Any, client: Any) -> None:
    provider = await simulate()
    deploy(provider.url, CACHE__MEMORY_MB="0")
    async with lifespan(app):
        await run("first", cache_ttl_s=60)
        await wait_until(lambda: client.keys("pm:answer:*"), "it is stored")
        assert (await run("second", cache_ttl_s=60)).cached
    assert (found(), provider.stats()["calls"]) == ({"missed": 1, "redis": 1}, 1)


@pytest.mark.covers("setting", "cache.redis_mb")
async def test_redis_may_keep_nothing(deploy: Any, simulate: Any, wait_until: Any, client: Any) -> None:
    provider = await simulate()
    deploy(provider.url, CACHE__REDIS_MB="0")
    async with lifespan(app):
        await run("first", cache_ttl_s=60)
        await wait_until(
            lambda: [key for key in client.keys("pm:flight:*") if client.hexists(key, "landed")], "it is said"
        )
        assert (await run("second", cache_ttl_s=60)).cached, "from the memory of the process"

    assert not client.keys("pm:answer:*")
