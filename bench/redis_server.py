"""A real redis-server for one measurement, without persistence, and what it says about itself."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from workers.commands.run.processes.redis_server import redis_binary

from .processes import Child, running

__all__ = ["RedisServer", "running_redis"]

READY_TIMEOUT_S = 10.0

ROUND_TRIPS = ("evalsha", "exec", "brpop", "get", "script")
"""Commands of workers that are a round trip each, and that stand neither in a script nor inside MULTI."""


class RedisServer:
    """A running server, and a client of it."""

    def __init__(self, child: Child, url: str) -> None:
        self.child = child
        self.url = url
        self.client = Redis.from_url(url)

    async def round_trips(self) -> int:
        """How many of `ROUND_TRIPS` it has served."""
        stats = await self.client.info("commandstats")
        # Where a command has subcommands, newer servers write "cmdstat_script|load".
        return sum(row["calls"] for name, row in stats.items() if _command(name) in ROUND_TRIPS)

    async def watch_commands(self, time_s: float) -> Counter[str]:
        """What clients ask for within a time, script by script, without what the scripts ask for."""
        seen: Counter[str] = Counter()
        async with self.client.monitor() as monitor:
            with suppress(TimeoutError):
                async with asyncio.timeout(time_s):
                    async for command in monitor.listen():
                        if command["client_type"] != "lua":
                            seen[str(command["command"]).partition(" ")[0].upper()] += 1
        return seen


def _command(stat: str) -> str:
    return stat.removeprefix("cmdstat_").partition("|")[0]


@asynccontextmanager
async def running_redis(directory: Path) -> AsyncIterator[RedisServer]:
    """Start a server on a free loopback port and wait until it answers."""
    port = _free_port()
    command = [str(redis_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    async with running([*command, "--loglevel", "warning"], log=directory / "redis.log") as child:
        server = RedisServer(child, f"redis://127.0.0.1:{port}/0")
        try:
            await _until_ready(server)
            yield server
        finally:
            await server.client.aclose()


async def _until_ready(server: RedisServer) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not await _answers(server.client):  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise server.child.failure("did not answer in time") from None


async def _answers(client: Redis) -> bool:
    try:
        await client.get("ready")
    except RedisConnectionError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
