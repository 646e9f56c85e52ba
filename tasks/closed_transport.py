"""A connection that was reset while it was idle is a broken connection on uvloop, too.

uvloop answers a write to a closed transport with RuntimeError, which redis-py neither retries nor expects.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection

if TYPE_CHECKING:
    _Connection = AbstractConnection
else:
    _Connection = object

__all__ = ["retried_when_closed"]

Pool = TypeVar("Pool", bound=ConnectionPool)


class _RetriedWhenClosed(_Connection):
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise redis_errors.ConnectionError("the connection was closed while it was idle") from error


def retried_when_closed(pool: Pool) -> Pool:
    """The pool, whose connections redis-py replaces as it does on asyncio's own event loop."""
    pool.connection_class = _retried(pool.connection_class)  # type: ignore[arg-type] # mypy doubts that a class hashes
    return pool


@cache
def _retried(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    return type(connection_class.__name__, (_RetriedWhenClosed, connection_class), {})
