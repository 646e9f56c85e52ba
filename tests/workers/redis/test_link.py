"""Script calls: when Redis is taken to be away, and when it is the process that is busy."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tasks.redis.script import Script
from tests.support.redis_server import RedisServer
from workers.redis.link import Link

TURN_S = 0.03


class BusyLoop:
    """Each turn of the loop takes `TURN_S`, as where hundreds of jobs start at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        began = time.monotonic()
        while time.monotonic() < began + TURN_S:
            pass
        self._next = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._next.cancel()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """One that Redis does not know yet."""
    (tmp_path / "once.lua").write_text(f"return '{tmp_path.name}'")
    return Script.read(tmp_path, "once")


async def test_a_busy_loop_is_no_silent_redis(server: RedisServer, script: Script, tmp_path: Path) -> None:
    """A first call takes the most turns: to connect, to be greeted, and to send the script's text."""
    async with Redis.from_url(server.url) as redis:
        link, busy = Link(redis, timeout_s=10 * TURN_S), BusyLoop()
        try:
            assert await link.run(script, [], []) == tmp_path.name.encode()
        finally:
            busy.stop()
            await link.close()


async def test_a_silent_redis_is_given_up(own_redis: RedisServer, script: Script) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        link = Link(redis, timeout_s=0.2)
        with own_redis.frozen():
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await link.run(script, [], [])
            assert time.monotonic() - began < 10, "it was not waited for until it moved"
        await link.close()
