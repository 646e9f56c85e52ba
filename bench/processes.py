"""The processes under measurement: started, watched and stopped by their handles."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

__all__ = ["BenchError", "Child", "clean_environ", "python", "running", "serving"]

STOP_GRACE_S = 15.0
HERE = Path(__file__).resolve().parent.parent


class BenchError(RuntimeError):
    """A measurement that would mean nothing: a process died, a job failed, a call was made twice."""


class Child:
    """A process of ours."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._seen = psutil.Process(process.pid)
        self.log = log

    def cpu_s(self) -> float:
        """User and system time so far."""
        times = self._seen.cpu_times()
        return times.user + times.system

    def rss_bytes(self) -> int:
        return int(self._seen.memory_info().rss)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    @property
    def was_killed(self) -> bool:
        """By a signal that it could not handle."""
        return self._process.returncode == -signal.SIGKILL

    async def first_line(self) -> str:
        """What it prints first. Raises `BenchError` if it ends without a word."""
        assert self._process.stdout is not None, "started with a pipe"
        line = await self._process.stdout.readline()
        if not line:
            raise self.failure("ended at its start")
        return line.decode().strip()

    async def output(self) -> str:
        """Everything it prints until its end. Raises `BenchError` if it fails."""
        output, _ = await self._process.communicate()
        if self._process.returncode:
            raise self.failure(f"failed (exit code {self._process.returncode})")
        return output.decode()

    def failure(self, what: str) -> BenchError:
        tail = self.log.read_text(errors="replace")[-2_000:]
        return BenchError(f"{self.log.stem} {what}. Its last words:\n{tail}")

    async def stop(self) -> None:
        if self.has_ended:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running(
    command: Sequence[str], *, log: Path, environ: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> AsyncIterator[Child]:
    """Start a process in its log's directory, its output in a pipe; stop it at the end. It gets `pass_fds`."""
    with log.open("wb") as log_file:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=log.parent,
            env=clean_environ() if environ is None else environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log_file,
            limit=1 << 24,
            pass_fds=pass_fds,
        )
    child = Child(process, log)
    try:
        yield child
    finally:
        await child.stop()


@asynccontextmanager
async def serving(command: Sequence[str], *, log: Path) -> AsyncIterator[tuple[Child, str]]:
    """Start a process that takes `--ready-fd`: with its URL, when it listens. `BenchError`: it ends instead."""
    told, ready = os.pipe()
    with os.fdopen(told) as pipe, os.fdopen(ready, "wb") as ours:
        async with running([*command, "--ready-fd", str(ready)], log=log, pass_fds=(ready,)) as child:
            ours.close()
            url = await asyncio.to_thread(pipe.read)
            if not url:
                raise child.failure("ended at its start")
            yield child, url


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of the tree that `clean_environ` names."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def clean_environ(tree: Path = HERE, **variables: str) -> dict[str, str]:
    """The environment without settings of the caller's own, and with `tree` first on the import path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "CELERY_"))}
    return inherited | {"PYTHONPATH": str(tree)} | variables
