"""`promptmill run` shows what workers tell of why their jobs wait."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tasks.redis.cancellation import stop
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.commands.run import notices

KEY = "p:" + redis_keys.NOTICES


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    redis: Redis = Redis(port=server.port)
    await redis.flushall()
    yield redis
    await redis.aclose()


@pytest.fixture
async def said(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """What is shown, of a run that looks all the time."""
    monkeypatch.setattr(notices, "LOOK_EVERY_S", 0.01)
    texts: list[str] = []
    showing = asyncio.create_task(notices.show_notices(redis, key_prefix="p:", say=texts.append))
    yield texts
    await stop(showing)


async def tell(redis: Redis, subject: str, text: str, *, lasts_s: float) -> None:
    record = json.dumps({"text": text, "until_ms": (time.time() + lasts_s) * 1000})
    await redis.hset(KEY, f"unreachable:{subject}", record)


async def until_said(texts: list[str], count: int) -> None:
    async with asyncio.timeout(10):
        while len(texts) < count:
            await asyncio.sleep(0.01)


async def test_each_text_is_shown_once_however_often_it_is_told(redis: Redis, said: list[str]) -> None:
    for text in ("one", "one", "two"):
        await tell(redis, "a", text, lasts_s=60)
        await tell(redis, "b", text, lasts_s=60)
        await until_said(said, 1 if text == "one" else 2)
    await tell(redis, "c", "three", lasts_s=60)
    await until_said(said, 3)
    assert said == ["one", "two", "three"]


async def test_what_does_not_hold_any_more_is_not_shown(redis: Redis, said: list[str]) -> None:
    await tell(redis, "a", "long ago", lasts_s=-5)
    await tell(redis, "b", "now", lasts_s=60)
    await until_said(said, 1)
    assert said == ["now"]


async def test_no_control_character_reaches_the_terminal(redis: Redis, said: list[str]) -> None:
    await tell(redis, "a", "red \x1b[31m\nline", lasts_s=60)
    await until_said(said, 1)
    assert said == [r"red \x1b[31m\nline"]


async def test_a_redis_that_is_away_ends_nothing(redis: Redis, said: list[str]) -> None:
    await redis.set(KEY, "somebody has made a string of it")
    await asyncio.sleep(0)
    await redis.delete(KEY)
    await tell(redis, "a", "still here", lasts_s=60)
    await until_said(said, 1)
    assert said == ["still here"]
