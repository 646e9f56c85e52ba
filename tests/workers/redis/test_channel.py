"""One subscription for all that listen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.redis.channel import Channel


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.subscribed = 0

    def take(self, said: str) -> None:
        if said == "junk":
            raise ValueError(said)
        self.heard.append(said)

    def hears_again(self) -> None:
        self.subscribed += 1


class _Odd:
    """A client whose first subscription fails as redis-py's do when a connection is closed under them."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.asked = 0

    def pubsub(self) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("read() called while another coroutine is already waiting for incoming data")
        return self.redis.pubsub()


async def test_each_listener_hears_its_own_channel(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    one, two = Ear(), Ear()
    channel = Channel(redis, key_prefix="us:")
    channel.listen("one", one.take, hears_again=one.hears_again)
    channel.listen("two", two.take, hears_again=two.hears_again)
    async with channel:
        await wait_until_async(lambda: channel.hears and one.subscribed and two.subscribed, description="it listens")
        for name, said in (("us:one", "a"), ("two", "not ours"), ("us:two", "junk"), ("us:two", "b")):
            await redis.publish(name, said)
        await wait_until_async(lambda: one.heard == ["a"] and two.heard == ["b"], description="both have heard")
    assert "us:two can't be read" in caplog.text


async def test_after_a_break_listeners_are_told_of_the_gap(redis: Redis) -> None:
    ear = Ear()
    channel = Channel(redis)
    channel.listen("one", ear.take, hears_again=ear.hears_again)
    async with channel:
        await wait_until_async(lambda: ear.subscribed == 1, description="it listens")
        await redis.client_kill_filter(_type="pubsub")
        await wait_until_async(lambda: ear.subscribed == 2, description="it listens again")


async def test_a_fault_does_not_leave_the_process_deaf(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    ear = Ear()
    channel = Channel(_Odd(redis))  # type: ignore[arg-type]  # as much of a client as is used
    channel.listen("one", ear.take, hears_again=ear.hears_again)
    async with channel:
        await wait_until_async(lambda: channel.hears, description="it listens again")
    assert "done again" in caplog.text
