"""Hearing of pauses as they begin: one subscription for all limiters of the process."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tasks.redis.cancellation import stop
from tasks.wire import redis_keys

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

    from ..registry import LimiterRegistry

__all__ = ["PauseChannel"]

logger = logging.getLogger("promptmill.limiter")

PING_EVERY_S = 2.0
DEAF_AFTER_S = 5.0
AGAIN_S = 0.25


class PauseChannel:
    """The subscription. It comes back by itself; while it is gone, `hears` is false."""

    def __init__(self, redis: Redis, registry: LimiterRegistry, *, key_prefix: str = "") -> None:
        self._redis = redis
        self._registry = registry
        self._name = key_prefix + redis_keys.LIMITER_PAUSES
        self._heard_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def hears(self) -> bool:
        """Whether a pause would be heard at once."""
        return asyncio.get_running_loop().time() - self._heard_at < DEAF_AFTER_S

    def open(self) -> None:
        self._task = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        self._closing = True
        if self._task is not None:
            await stop(self._task)

    async def _keep_listening(self) -> None:
        while not self._closing:
            # Closing a broken connection may fail as well.
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError):
                pass
            except Exception:  # a fault of ours, or redis-py's, must not leave the process deaf for good, unseen
                logger.exception("A fault while listening for pauses; it is done again")
            self._heard_at = float("-inf")
            await asyncio.sleep(AGAIN_S)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(self._name)
            while not self._closing:
                await self._hear_one(subscription)

    async def _hear_one(self, subscription: PubSub) -> None:
        async with asyncio.timeout(DEAF_AFTER_S):
            message = await subscription.get_message(timeout=PING_EVERY_S)
        if message is None:
            await subscription.ping()
            return
        self._heard_at = asyncio.get_running_loop().time()
        if message["type"] == "subscribe":
            self._registry.hears_again()
        elif message["type"] == "message":
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        try:
            limiter, epoch, left_us = message["data"].decode().rsplit(" ", 2)
            self._registry.pause_heard(limiter, int(epoch), int(left_us) / 1e6)
        except ValueError:
            logger.warning("A message on %s is not a pause; something else writes to our channel", self._name)
