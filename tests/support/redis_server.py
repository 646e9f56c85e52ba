"""A real redis-server of the tests' own, on loopback, with a directory of its own, stopped by pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import redis

from workers.commands.run.processes.redis_server import redis_binary

from .ports import free_port
from .waiting import wait_until

__all__ = ["RedisServer", "SentinelServer"]


class RedisServer:
    """A private redis-server that a test may kill, start again, fill and freeze."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        binary: Path | None = None,
        sentinel: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`options` are lines of its configuration: `RedisServer(tmp_path, "maxmemory 10mb")`."""
        self.port = free_port(of_a_cluster="cluster-enabled yes" in options)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._options = options
        self._binary = binary or redis_binary()
        self._sentinel = sentinel
        self._environ = {**os.environ, **(environ or {})}
        directory.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start, or start again with the data of before."""
        config = self._directory / "redis.conf"
        if not config.exists():
            config.write_text("".join(f"{line}\n" for line in self._configuration()))
        with (self._directory / "redis.log").open("ab") as log:
            mode = ["--sentinel"] if self._sentinel else []
            command = [str(self._binary), str(config), *mode]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environ)
        wait_until(self._answers, "redis-server answers")

    def _configuration(self) -> Iterator[str]:
        yield from (f"port {self.port}", "bind 127.0.0.1", f"dir {self._directory}", *self._options)
        if _version(self._binary) >= (7, 0):
            yield "enable-debug-command local"  # DEBUG SLEEP is one of the faults
        if not self._sentinel:
            yield 'save ""'

    def _answers(self) -> bool:
        """Whatever it answers: it may want a password."""
        assert self.process.poll() is None, (self._directory / "redis.log").read_text()[-2000:]
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                answer = link.recv(64)
        except OSError:
            return False
        return bool(answer) and not answer.startswith(b"-LOADING")

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def crash(self) -> None:
        """Kill it, and start it again with what it has on disk."""
        self.kill()
        self.start()

    def cut(self) -> None:
        """Close all links to it."""
        with self.client() as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()


class SentinelServer(RedisServer):
    """A sentinel that watches one master, which it calls "mill". It decides alone, after a second of silence."""

    def __init__(self, directory: Path, master: RedisServer, *options: str) -> None:
        watched = f"monitor mill 127.0.0.1 {master.port} 1", "down-after-milliseconds mill 1000"
        super().__init__(directory, *(f"sentinel {line}" for line in watched), *options, sentinel=True)


@cache
def _version(binary: Path) -> tuple[int, ...]:
    told = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True).stdout
    (version,) = (word.removeprefix("v=") for word in told.split() if word.startswith("v="))
    return tuple(int(part) for part in version.split("."))
