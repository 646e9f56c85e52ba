"""Shows what workers tell of why their jobs wait, each text once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tasks.redis.cancellation import is_stopped
from tasks.wire import redis_keys
from workers.telemetry.terminal import printable

__all__ = ["show_notices"]

LOOK_EVERY_S = 1.0


async def show_notices(redis: Redis, *, key_prefix: str, say: Callable[[str], None]) -> None:
    """Until it is cancelled. While Redis is away there is nothing to show."""
    shown: set[str] = set()
    while not is_stopped():
        for text in await _current(redis, key_prefix + redis_keys.NOTICES):
            if text not in shown:
                shown.add(text)
                say(printable(text))
        await asyncio.sleep(LOOK_EVERY_S)


async def _current(redis: Redis, key: str) -> list[str]:
    """The texts of those that hold still, by Redis's clock."""
    try:
        async with redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hvals(key)
            (seconds, _), records = await pipe.execute()
    except (RedisError, OSError):
        return []
    notices: list[dict[str, Any]] = [orjson.loads(record) for record in records]
    return [notice["text"] for notice in notices if notice["until_ms"] >= seconds * 1000]
