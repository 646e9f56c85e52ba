"""Hearing at once what other workers publish: one subscription of the process for all that listen."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from tasks.redis.cancellation import stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

__all__ = ["Channel"]

logger = logging.getLogger("promptmill.channel")

PING_EVERY_S = 2.0
DEAF_AFTER_S = 5.0
AGAIN_S = 0.25


class _Listener(NamedTuple):
    take: Callable[[str], None]
    hears_again: Callable[[], None]


class Channel:
    """The subscription. Open it when all listen. It comes back by itself; while it is gone, `hears` is false."""

    def __init__(self, redis: Redis, *, key_prefix: str = "") -> None:
        self._redis = redis
        self._key_prefix = key_prefix
        self._listeners: dict[str, _Listener] = {}
        self._heard_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def listen(self, name: str, take: Callable[[str], None], *, hears_again: Callable[[], None]) -> None:
        """Pass each message of the channel `name` to `take`, which raises ValueError for what it can't read.

        `hears_again` is called after each subscription: what was said before may have been missed.
        """
        self._listeners[self._key_prefix + name] = _Listener(take, hears_again)

    @property
    def hears(self) -> bool:
        """Whether a message would be heard at once."""
        return asyncio.get_running_loop().time() - self._heard_at < DEAF_AFTER_S

    def open(self) -> None:
        self._task = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        self._closing = True
        if self._task is not None:
            await stop(self._task)

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _keep_listening(self) -> None:
        while not self._closing:
            # Closing a broken connection may fail as well.
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError):
                pass
            except Exception:  # a fault of ours, or redis-py's, must not leave the process deaf for good, unseen
                logger.exception("A fault while listening to other workers; it is done again")
            self._heard_at = float("-inf")
            await asyncio.sleep(AGAIN_S)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(*self._listeners)
            while not self._closing:
                await self._hear_one(subscription)

    async def _hear_one(self, subscription: PubSub) -> None:
        async with asyncio.timeout(DEAF_AFTER_S):
            message = await subscription.get_message(timeout=PING_EVERY_S)
        if message is None:
            await subscription.ping()
            return
        self._heard_at = asyncio.get_running_loop().time()
        if message["type"] not in {"subscribe", "message"}:
            return
        name = message["channel"].decode()
        if message["type"] == "subscribe":
            self._listeners[name].hears_again()
        else:
            self._take(name, message)

    def _take(self, name: str, message: dict[str, Any]) -> None:
        try:
            self._listeners[name].take(message["data"].decode())
        except ValueError:
            logger.warning("A message on %s can't be read; something else writes to our channel", name)
