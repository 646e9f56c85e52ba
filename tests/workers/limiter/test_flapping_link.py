"""A link to Redis that comes and goes: nothing is reported that nobody has looked at, and all goes on."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from redis.asyncio import Redis

from config.catalog import Limits
from tasks.redis.address import Address
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.limiter import LimiterRegistry

from .test_registry import model, once


def unseen_errors() -> list[dict[str, Any]]:
    """What asyncio reports from now on."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_a_link_that_flaps_leaves_no_error_unseen(client: Redis, redis_server: RedisServer) -> None:
    proxy, unseen = Proxy(redis_server.port), unseen_errors()
    try:
        redis = Address.of(f"redis://127.0.0.1:{proxy.port}/0").async_client(socket_timeout=1.0)
        async with redis, LimiterRegistry(redis, now=time.time) as limits:
            models = [model(Limits(rpm=60_000), f"m{number}") for number in range(20)]
            running = True

            async def keep_calling(number: int) -> None:
                while running:
                    try:
                        async with asyncio.timeout(0.05 * (number % 7 + 1)):
                            permit = await once(limits, models[number % 20])
                            if number % 50 == 0:
                                permit.rate_limited(0.01, {})
                    except TimeoutError:
                        pass

            callers = [asyncio.create_task(keep_calling(number)) for number in range(100)]
            for fault in ("refuse", "none", "black_hole", "none", "refuse", "none"):
                for _ in range(4):
                    await asyncio.to_thread(proxy.reset)
                    await asyncio.sleep(0.05)  # the fault lasts for so long
                await asyncio.to_thread(proxy.set, fault)
            await asyncio.sleep(0.3)  # as above
            running = False
            await asyncio.gather(*callers)
            await wait_until_async(lambda: limits._channel.hears, description="pauses are heard again")
            await asyncio.wait_for(asyncio.gather(*(once(limits, each) for each in models)), 10.0)
    finally:
        await asyncio.to_thread(proxy.close)
    gc.collect()
    await asyncio.sleep(0)
    assert not unseen
