"""Celery worker processes under measurement, ours or stock ones."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import HERE, Child, clean_environ, python, running
from .provider import Provider
from .redis_server import RedisServer

__all__ = ["Fleet", "Shape", "our_workers", "running_fleet"]

READY_TIMEOUT_S = 30.0
BINDINGS = "_kombu.binding.celery.pidbox"
"""kombu's set of the workers that listen for remote control, which they do once they take jobs."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many processes, with how many jobs each at a time."""

    processes: int
    concurrency: int
    events: bool = False

    def __str__(self) -> str:
        return f"{self.processes} x {self.concurrency}{', events' if self.events else ''}"

    @property
    def places(self) -> int:
        return self.processes * self.concurrency


class Fleet:
    """Running workers."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    def cpu_s(self) -> float:
        return sum(child.cpu_s() for child in self._children)

    def rss_bytes(self) -> int:
        """Of all processes together."""
        return sum(child.rss_bytes() for child in self._children)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped while a queue is filled, so that all jobs are there when the work begins."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            child.signal(number)

    def check(self) -> None:
        """Raises `BenchError` if one has died."""
        for child in self._children:
            if child.has_ended:
                raise child.failure("died")


@asynccontextmanager
async def running_fleet(
    app: str, shape: Shape, *, redis: RedisServer, directory: Path, environ: dict[str, str], options: Sequence[str] = ()
) -> AsyncIterator[Fleet]:
    """Start `celery -A app worker` as often as `shape` says, and wait until each takes jobs."""
    async with AsyncExitStack() as stack:
        children = []
        for number in range(1, shape.processes + 1):
            command = python("celery", "-A", app, "worker", "-n", f"w{number}@bench", "-c", shape.concurrency)
            command += ["-l", "WARNING", *(["-E"] if shape.events else []), *options]
            log = directory / f"worker-{number}.log"
            children.append(await stack.enter_async_context(running(command, log=log, environ=environ)))
        fleet = Fleet(children)
        await _until_ready(fleet, children, redis)
        yield fleet


async def _until_ready(fleet: Fleet, children: Sequence[Child], redis: RedisServer) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while len(await redis.client.smembers(BINDINGS)) < len(children):
                fleet.check()
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise children[0].failure("was not ready in time") from None


@asynccontextmanager
async def our_workers(
    shape: Shape, *, redis: RedisServer, provider: Provider, directory: Path, tree: Path = HERE
) -> AsyncIterator[Fleet]:
    """Our workers, from the checkout in `tree`."""
    catalogue = directory / "catalogue.toml"
    catalogue.write_text(provider.catalogue())
    environ = clean_environ(tree, PROMPTMILL_REDIS_URL=redis.url, PROMPTMILL_CATALOG=str(catalogue))
    async with running_fleet("workers", shape, redis=redis, directory=directory, environ=environ) as fleet:
        yield fleet
