"""One scrape: read Redis, or say that it is away."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from ..common import CHECK_REDIS
from .families import BREAKER, DURATION, LIMITER, QUEUE, UP
from .reading import READ_TIMEOUT_S, connect, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from config.settings import Settings
    from tasks.redis.address import Address

    from .families import Family
    from .reading import Deployment

__all__ = ["RedisCollector"]

logger = logging.getLogger("promptmill.metrics")


class RedisCollector(Collector):
    """Asks Redis each time it is collected, from any thread. Lives as long as its process.

    Redis is spoken to on a loop of our own, so that connections outlive a scrape, and so that a scrape ends in time
    whatever holds its reading up: resolving a name can't be cancelled.
    """

    def __init__(self, address: Address, *, queues: Sequence[str], settings: Settings) -> None:
        """Redis may be away."""
        self._redis = connect(address)
        self._queues = queues
        self._settings = settings
        self._problem: str | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="promptmill-metrics-redis", daemon=True).start()

    def describe(self) -> Iterator[Family]:
        """Without asking Redis: prometheus_client wants the names when we are registered."""
        yield from (UP.family(), DURATION.family())
        yield from (metric.family() for metric in QUEUE)
        yield from (metric.family() for metric in LIMITER)
        yield from (metric.family() for metric in BREAKER)

    def collect(self) -> Iterator[Family]:
        """Everything, or `promptmill_up 0` and the time it took to find out."""
        began = time.perf_counter()
        try:
            deployment = self._read()
        except (RedisError, OSError) as error:
            self._note(type(error).__name__)
            deployment = None
        else:
            self._note(None)
        yield UP.family([float(deployment is not None)])
        yield DURATION.family([time.perf_counter() - began])
        if deployment is not None:
            yield from (metric.family([deployment.queue]) for metric in QUEUE)
            yield from (metric.family(deployment.limiters) for metric in LIMITER)
            yield from (metric.family(deployment.breakers) for metric in BREAKER)

    def _read(self) -> Deployment:
        reading = asyncio.run_coroutine_threadsafe(
            read(self._redis, queues=self._queues, settings=self._settings), self._loop
        )
        try:
            return reading.result(READ_TIMEOUT_S)
        except TimeoutError:
            reading.cancel()
            raise

    def _note(self, problem: str | None) -> None:
        """Say it once, not at each scrape."""
        if problem != self._problem:
            if problem is None:
                logger.info("Redis answers again")
            else:
                logger.warning("Redis can't be asked (%s), so promptmill_up is 0. %s", problem, CHECK_REDIS)
        self._problem = problem
