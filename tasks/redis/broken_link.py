"""A connection that breaks in the middle of a call is a ConnectionError, which redis-py retries and callers expect.

redis-py has other errors for two such moments: with uvloop, a write to a transport that is closed is a RuntimeError;
and where one task writes to a connection that another reads (pub/sub), what it does after the other has found it
broken is an AttributeError ('NoneType' object has no attribute 'writelines').
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

__all__ = ["told_as_broken"]

Pool = TypeVar("Pool", bound=ConnectionPool)


class _ToldAsBroken(_Connection):
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except (RuntimeError, AttributeError) as error:
            raise redis_errors.ConnectionError("the connection is closed") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except AttributeError as error:
            raise redis_errors.ConnectionError("the connection is closed") from error


def told_as_broken(pool: Pool) -> Pool:
    """The pool, with connections that do so."""
    pool.connection_class = _told_as_broken(pool.connection_class)  # type: ignore[arg-type] # mypy doubts its hash
    return pool


@cache
def _told_as_broken(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    return type(connection_class.__name__, (_ToldAsBroken, connection_class), {})
