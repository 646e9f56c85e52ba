"""Redis, the workers and the lifeline that ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from tests.support.waiting import wait_until, wait_until_async
from workers.commands.run.beside import beside
from workers.commands.run.errors import RunError
from workers.commands.run.output.state import RunState
from workers.commands.run.processes.environ import engine_environ
from workers.commands.run.processes.fleet import WorkerFleet
from workers.commands.run.processes.lifeline import Lifeline
from workers.commands.run.processes.redis_server import RedisServer

# A parent that starts a process which ignores TERM, and one that notes its own end, and is then killed.
DOOMED = """
import asyncio, os, signal, sys
from pathlib import Path
from workers.commands.run.processes.lifeline import Lifeline

async def main():
    here = Path(sys.argv[1])
    lifeline = Lifeline()
    lifeline.open()
    stubborn = ["/bin/sh", "-c", "trap '' TERM; echo 1; while :; do sleep 0.05; done"]
    polite = ["/bin/sh", "-c", "trap 'echo stopped > polite; exit' TERM; echo 1; while :; do sleep 0.05; done"]
    children = [
        lifeline.start(stubborn, kind="worker", log=here / "stubborn.log"),
        lifeline.start(polite, kind="server", log=here / "polite.log", cwd=here),
    ]
    print(*(child.pid for child in children), flush=True)
    await asyncio.sleep(99)

import uvloop
uvloop.run(main())
"""


@pytest.fixture
async def lifeline() -> AsyncIterator[Lifeline]:
    lifeline = Lifeline()
    lifeline.open()
    yield lifeline
    await lifeline.close()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_written(log: Path) -> bool:
    return log.exists() and log.stat().st_size > 0


def test_kill_9_of_the_parent_ends_its_children(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", DOOMED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        for name in ("stubborn", "polite"):
            log = tmp_path / f"{name}.log"
            wait_until(partial(_is_written, log), f"{name} runs")
        assert not any(map(is_gone, pids))
        parent.kill()
    wait_until(lambda: all(map(is_gone, pids)), description="children are gone", timeout_s=15)
    assert (tmp_path / "polite").read_text() == "stopped\n"


async def test_child_stops_when_told(lifeline: Lifeline, tmp_path: Path) -> None:
    child = lifeline.start(["sleep", "99"], kind="server", log=tmp_path / "log")
    await child.stop(grace_s=5)
    assert (child.has_ended, await child.wait()) == (True, -signal.SIGTERM)


async def test_child_that_will_not_stop_is_killed(lifeline: Lifeline, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = lifeline.start(
        ["/bin/sh", "-c", "trap '' TERM; echo 1; while :; do sleep 0.05; done"], kind="worker", log=log
    )
    await wait_until_async(lambda: log.exists() and log.read_text(), description="it ignores TERM")
    await child.stop(grace_s=0.05)
    assert await child.wait() == -signal.SIGKILL


async def test_closing_the_lifeline_stops_what_is_left(tmp_path: Path) -> None:
    lifeline = Lifeline()
    lifeline.open()
    child = lifeline.start(["sleep", "99"], kind="server", log=tmp_path / "log")
    await lifeline.close()
    assert await child.wait() == -signal.SIGTERM
    with pytest.raises(RuntimeError, match="closed"):
        lifeline.start(["true"], kind="server", log=tmp_path / "log")


async def test_redis_is_private_and_keeps_its_data(lifeline: Lifeline, tmp_path: Path) -> None:
    directory, log = tmp_path / 'it\'s a "directory"', tmp_path / "redis.log"
    server = await RedisServer.start(directory, lifeline=lifeline, log=log)
    async with Redis.from_url(server.url) as redis:
        await redis.set("key", "value")
        assert (await redis.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        assert (await redis.config_get("bind"))["bind"] == "127.0.0.1"
    password = server.url.split(":")[2].partition("@")[0]
    async with Redis.from_url(server.url.replace(f":{password}@", "")) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.get("key")
    assert not any(password in argument for argument in psutil.Process(server.pid).cmdline())
    assert (directory / "redis.conf").stat().st_mode & 0o077 == 0
    await server.stop()
    again = await RedisServer.start(directory, lifeline=lifeline, log=log)
    async with Redis.from_url(again.url) as redis:
        assert await redis.get("key") == b"value"
    await again.stop()


async def test_redis_that_dies_is_an_error(lifeline: Lifeline, tmp_path: Path) -> None:
    server = await RedisServer.start(tmp_path / "redis", lifeline=lifeline, log=tmp_path / "redis.log")
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="stopped by itself"):
        await server.wait()


async def test_worker_that_can_not_start_shows_its_log(lifeline: Lifeline, tmp_path: Path) -> None:
    state = RunState.open(tmp_path / "out.jsonl")
    server = await RedisServer.start(state.redis, lifeline=lifeline, log=state.log("redis"))
    environ = engine_environ(PROMPTMILL_CONCURRENCY="many")
    fleet = WorkerFleet(size=1, concurrency=1, environ=environ, lifeline=lifeline, state=state)
    async with Redis.from_url(server.url) as redis:
        with pytest.raises(RunError, match="PROMPTMILL_CONCURRENCY"):
            await fleet.start(redis, key_prefix="")
    await server.stop()
    state.close(finished=True)


def test_workers_see_our_settings_and_not_celerys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere")
    monkeypatch.setenv("BROKER_URL", "redis://elsewhere")
    environ = engine_environ(PROMPTMILL_REDIS_URL="redis://here")
    assert environ["PROMPTMILL_REDIS_URL"] == "redis://here"
    assert not {"CELERY_BROKER_URL", "BROKER_URL"} & environ.keys()
    engine, here = environ["PYTHONPATH"].split(os.pathsep)[:2]
    assert (Path(engine) / "workers" / "commands").is_dir()
    assert here == str(tmp_path)


async def test_beside_ends_with_the_first_error() -> None:
    async def fails() -> None:
        raise RunError("why")

    async def waits() -> None:
        await Lifeline().close()

    with pytest.raises(RunError, match="why"):
        await beside(_for_ever(), waits(), fails())


async def _for_ever() -> None:
    await asyncio.Event().wait()
