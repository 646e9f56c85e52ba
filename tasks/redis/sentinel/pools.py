"""Connections to whoever is the master when they connect, and pools of them."""

from __future__ import annotations

from typing import Any, Final

from redis import exceptions as redis_errors
from redis import sentinel as redis_sentinel
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import sentinel as async_sentinel

from .search import AsyncFinder, Finder
from .sentinels import Sentinels

__all__ = ["AsyncMasterPool", "BlockingMasterPool", "MasterConnection", "MasterPool"]

_REFUSALS: Final = {
    "READONLY": "the former master is a replica now",
    "NOREPLICAS": "NOREPLICAS: too few replicas are in step with the master for it to take writes",
}
"""What a master says that was replaced, or may have been, in a word of Redis's own; in a script's reply it stands
somewhere in the text."""


class MasterConnection(redis_sentinel.SentinelManagedConnection):
    """A connection to whoever is the master when it connects.

    redis-py's asks for the master in `connect` only, and returns to the former one where a command or a retry
    connects (redis/redis-py#3874); and it does not know a replica's refusal in the words of a script.
    """

    def _connect_retry(self) -> None:
        if self._sock is None:
            self.connect_check_health(check_health=self.connection_pool.check_connection)

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Ask, then connect. Without `retry_socket_connect`, which would try the same master again."""
        if self._sock is None:
            self.host, self.port = self.connection_pool.get_master_address()
        super().connect_check_health(check_health=check_health, retry_socket_connect=False)
        try:
            self.connection_pool.sentinel_manager.watch.admit(self)
        except redis_errors.ConnectionError:
            self.disconnect()  # type: ignore[no-untyped-call] # redis-py leaves it without types
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Raises ConnectionError where writes are refused as in a failover: the next try asks for the master."""
        try:
            return super().read_response(*args, **options)
        except redis_errors.ResponseError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            self.disconnect()  # type: ignore[no-untyped-call] # redis-py leaves it without types
            raise redis_errors.ConnectionError(refusal) from error

    @property
    def raw_socket(self) -> Any:
        """For the watch."""
        return self._sock


class AsyncMasterConnection(async_sentinel.SentinelManagedConnection):
    """The same on an event loop."""

    async def _connect_retry(self) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=self.connection_pool.check_connection)

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """As MasterConnection's."""
        if not self.is_connected:
            self.host, self.port = await self.connection_pool.get_master_address()
        await super().connect_check_health(check_health=check_health, retry_socket_connect=False)
        try:
            self.connection_pool.sentinel_manager.watch.admit(self)
        except redis_errors.ConnectionError:
            await self.disconnect()
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As MasterConnection's."""
        try:
            return await super().read_response(*args, **options)
        except redis_errors.ResponseError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            await self.disconnect()
            raise redis_errors.ConnectionError(refusal) from error

    @property
    def raw_socket(self) -> Any:
        """As MasterConnection's."""
        writer = self._writer
        return None if writer is None else writer.get_extra_info("socket")


def _refusal(error: redis_errors.ResponseError) -> str | None:
    said = str(error)
    return next((text for word, text in _REFUSALS.items() if word in said), None)


class MasterPool(redis_sentinel.SentinelConnectionPool):
    """Connections to the master, from any thread. `options` are redis-py's, for the connections."""

    def __init__(self, sentinels: Sentinels, **options: Any) -> None:
        options.setdefault("connection_class", MasterConnection)
        super().__init__(sentinels.master_name, Finder(sentinels), **options)  # type: ignore[no-untyped-call] # redis-py leaves it without types


class AsyncMasterPool(async_sentinel.SentinelConnectionPool):
    """The same on an event loop."""

    def __init__(self, sentinels: Sentinels, **options: Any) -> None:
        options.setdefault("connection_class", AsyncMasterConnection)
        super().__init__(sentinels.master_name, AsyncFinder(sentinels), **options)  # type: ignore[no-untyped-call] # redis-py leaves it without types


class BlockingMasterPool(AsyncMasterPool, BlockingConnectionPool):
    """The same, where a call beyond `max_connections` waits up to `timeout` seconds for a connection."""
