"""One process of a scenario: `python -m bench.limiter JSON`. All its waiters ask until SIGTERM."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time

import uvloop
from redis.asyncio import Redis

from .contestants import CONTESTANTS, Once, Part
from .provider import connected
from .scenarios import Scenario

__all__ = ["READY", "main"]

READY = "ready"
"""What it prints once its waiters ask; what it has counted, it prints at its end."""


async def live(scenario: Scenario, *, index: int, redis_url: str, port: int) -> dict[str, float]:
    """What the process has counted when it was told to stop."""
    random.seed(f"{scenario.seed} {index}")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with Redis.from_url(redis_url) as redis, connected(port, process=index) as client:
        part = Part(scenario, redis, redis_url, client)
        async with CONTESTANTS[scenario.contestant](part) as once:
            waiters = [asyncio.create_task(_keep_asking(once, number)) for number in range(scenario.waiters_of(index))]
            _say(READY)
            before_s = time.process_time()
            await stopped.wait()
            cpu_s = time.process_time() - before_s
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
    return {"stale": part.stale, "cpu_s": cpu_s}


async def _keep_asking(once: Once, waiter: int) -> None:
    while True:
        await once(waiter)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Live the life that the argument describes, and print what was counted."""
    options = json.loads(sys.argv[1])
    _say(json.dumps(uvloop.run(live(Scenario(**options.pop("scenario")), **options))))
