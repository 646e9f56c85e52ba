"""Says in Redis which limiters this process has: for `promptmill limits` and `promptmill metrics`, nothing else."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from tasks.redis.cancellation import stop

from ...redis.link import AWAY
from ..view import mark_listed

if TYPE_CHECKING:
    from collections.abc import Collection

    from redis.asyncio import Redis

    from ..shared.schedule import LimiterName

__all__ = ["Listing"]

logger = logging.getLogger("promptmill.limiter")

LIST_EVERY_S = 3_600.0
LIST_AGAIN_S = 30.0


class Listing:
    """Keeps `names` listed while it is open: every hour, and soon when there are new ones."""

    def __init__(self, redis: Redis, names: Collection[LimiterName], *, key_prefix: str) -> None:
        """`names` is read each time: it may change."""
        self._redis = redis
        self._names = names
        self._key_prefix = key_prefix
        self._has_new = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """On the loop that uses it."""
        self._task = asyncio.create_task(self._keep_listed())

    async def close(self) -> None:
        if self._task is not None:
            await stop(self._task)

    def note_new(self) -> None:
        """A name has come."""
        self._has_new.set()

    async def _keep_listed(self) -> None:
        while True:
            self._has_new.clear()
            again_s = LIST_EVERY_S
            try:
                seconds, _ = await self._redis.time()
                await mark_listed(self._redis, list(self._names), now=seconds, key_prefix=self._key_prefix)
            except AWAY:
                again_s = LIST_AGAIN_S
            except Exception:  # a fault of ours must not end the list for good, unseen
                logger.exception("A fault of ours in listing the limiters; it goes on")
                again_s = LIST_AGAIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await self._has_new.wait()
