"""The Redis of a run's own: whose port another process takes first."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from workers.commands.run.errors import RunError
from workers.commands.run.processes.lifeline import Lifeline
from workers.commands.run.processes.redis_server import RedisServer


@pytest.fixture
async def lifeline() -> AsyncIterator[Lifeline]:
    line = Lifeline()
    line.open()
    yield line
    await line.close()


async def test_a_port_that_is_taken_meanwhile_is_no_end(tmp_path: Path, lifeline: Lifeline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # and it says nothing
        ports = iter([taken.getsockname()[1], good := free_port()])
        server = await RedisServer.start(
            tmp_path / "redis", lifeline=lifeline, log=tmp_path / "log", free_port=lambda: next(ports)
        )
    assert server.url.endswith(f":{good}/0")
    await server.stop()


async def test_one_that_cannot_start_is_not_started_again(tmp_path: Path, lifeline: Lifeline) -> None:
    directory = tmp_path / "redis"
    directory.mkdir()
    (directory / "appendonly.aof").write_text("this is no append-only file")
    ports: list[int] = []

    def next_port() -> int:
        ports.append(free_port())
        return ports[-1]

    with pytest.raises(RunError, match="did not start"):
        await RedisServer.start(directory, lifeline=lifeline, log=tmp_path / "log", free_port=next_port)
    assert len(ports) == 1
