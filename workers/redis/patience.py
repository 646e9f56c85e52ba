"""Asking our own Redis until it answers: its errors are no job's result.

A job whose answer was paid for, or may have been, waits for as long as Redis takes: to be stored, to be counted, or to
be found stored already. It can be cancelled meanwhile, and its message then goes back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from celery.exceptions import BackendGetMetaError
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["OUR_REDIS", "RETRY_S", "patiently", "say_it_waits", "will_pass"]

logger = logging.getLogger("promptmill.results")

T = TypeVar("T")

RETRY_S = 0.5
"""Pause before Redis is asked again. It is asked until it answers: the answers have been paid for."""

OUR_REDIS = (RedisError, OSError, OperationalError, BackendGetMetaError)
"""What an error of Redis arrives as: from redis-py, from the socket, through kombu, through Celery's backend."""


def will_pass(exc: BaseException) -> bool:
    """Whether Redis may do the same later: it is away, starting, full or read-only for now."""
    if isinstance(exc, OperationalError | BackendGetMetaError):
        cause = exc.__cause__ or exc.__context__
        return cause is None or (isinstance(cause, RedisError | OSError) and will_pass(cause))
    if not isinstance(exc, ResponseError) or isinstance(exc, OutOfMemoryError | ReadOnlyError):
        return True
    return any(word in str(exc) for word in ("OOM", "LOADING", "READONLY", "MISCONF", "NOREPLICAS", "BUSY "))


async def patiently(ask: Callable[[], Awaitable[T]], wanted: str) -> T:
    """What `ask` gives, asked again while Redis is away. `wanted` completes "Redis does not take ..." in the log.

    Raises what will not pass.
    """
    failures = 0
    while True:
        try:
            return await ask()
        except OUR_REDIS as exc:
            if not will_pass(exc):
                raise
            failures += 1
            say_it_waits(wanted, exc, failures)
        await asyncio.sleep(RETRY_S)


def say_it_waits(wanted: str, exc: BaseException, failures: int) -> None:
    """Log the first failure, and some of those that follow."""
    if failures in {1, 10} or failures % 60 == 0:
        logger.warning("Redis does not take %s (%s), trying again", wanted, type(exc).__name__)
