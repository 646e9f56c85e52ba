"""Celery workers forked from a process that has imported what they import: half of a worker's start is importing.

Only other people's packages are imported before the fork, and no settings are read: whatever a worker's environment
decides is decided in the worker. A test that needs more of a fresh process (its dynamic linker, its limits) starts one.

    pytest ── fork_server ── a supervisor for each worker, which tells pytest its pid and its end ── worker
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

__all__ = ["ForkServer", "ForkedWorker", "shared"]

ROOT = Path(__file__).resolve().parents[2]

PRELOADED = [
    "celery.bin.celery",
    "celery.apps.worker",
    "celery.worker.consumer",
    "celery.backends.redis",
    "celery.concurrency",
    "kombu.transport.redis",
    "redis.asyncio",
    "greenlet",
    "flower.command",
    "aiohttp",
    "pydantic_settings",
    "structlog",
]

REQUEST_BYTES = 1
"""The request itself is a file; this byte carries the three descriptors."""


class ForkedWorker:
    """As `subprocess.Popen`, as far as tests use it: the worker is no child of this process."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._heard = b""
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._next_number()

    def _next_number(self) -> int:
        while b"\n" not in self._heard:
            heard = self._supervisor.recv(64)
            assert heard, "the worker's supervisor has died"
            self._heard += heard
        number, _, self._heard = self._heard.partition(b"\n")
        return int(number)

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code, or minus the signal's number. Raises `subprocess.TimeoutExpired`."""
        with self._lock:
            if self.returncode is None:
                self._supervisor.settimeout(timeout_s)
                try:
                    self.returncode = self._next_number()
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired("celery worker", timeout_s or 0) from None
                self._supervisor.close()
            return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts workers. Any thread may ask it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` is the interpreter's: a worker has its own."""
        self._requests, requests = socket.socketpair()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(requests.fileno())],
            cwd=ROOT,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            pass_fds=[requests.fileno()],
        )
        requests.close()

    def start(self, arguments: Sequence[str], *, environ: Mapping[str, str], log: Path) -> ForkedWorker:
        """`celery` with these arguments, in a session of its own, its output in `log`."""
        mine, supervisor = socket.socketpair()
        with supervisor, TemporaryFile() as request, log.open("wb") as output:
            request.write(json.dumps({"arguments": list(arguments), "environ": dict(environ)}).encode())
            request.seek(0)
            descriptors = [supervisor.fileno(), request.fileno(), output.fileno()]
            with self._lock:
                socket.send_fds(self._requests, [b"x" * REQUEST_BYTES], descriptors)
        return ForkedWorker(mine)

    def close(self) -> None:
        """End the server. Workers that run go on."""
        self._requests.close()
        self._process.wait()


@cache
def shared(*environ: tuple[str, str]) -> ForkServer:
    """This process's server whose interpreter has these variables too. It ends with this process."""
    server = ForkServer({**os.environ, **dict(environ)})
    atexit.register(server.close)
    return server


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns in the worker, with the request; in the server when nobody asks any more."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not message:
            return None
        if os.fork() == 0:
            requests.close()
            return _supervise(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _reap()


def _reap() -> None:
    """Let the supervisors that have ended go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(teller: int, request: int, output: int) -> dict[str, Any]:
    """Fork the worker, and tell its pid and its end. Returns in the worker alone."""
    with os.fdopen(request, "rb") as file:
        wanted: dict[str, Any] = json.load(file)
    pid = os.fork()
    if pid:
        os.write(teller, b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):  # whoever asked has gone
            os.write(teller, b"%d\n" % code)
        os._exit(0)
    os.close(teller)
    os.setsid()
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    return wanted


def _main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is None:
        return
    os.environ.clear()
    os.environ.update(wanted["environ"])
    sys.argv = ["celery", *wanted["arguments"]]
    from celery.__main__ import main

    main()


if __name__ == "__main__":
    _main()
