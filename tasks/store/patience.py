"""How long those who read results ride out an outage of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis import exceptions as redis_errors

from ..errors import QueueUnavailable

__all__ = ["Patience"]

T = TypeVar("T")

_RETRY_S: Final = 0.1
_REFUSALS: Final = (
    redis_errors.AuthenticationError,
    redis_errors.AuthorizationError,
    redis_errors.NoPermissionError,
)
"""No outage: waiting brings no other password."""


class Patience:
    """Lasts for `outage_s` from the begin of the first call that failed; a call that succeeds renews it.

    Belongs to one event loop, and to one reader or to all that share a connection.
    """

    def __init__(self, outage_s: float) -> None:
        self._outage_s = outage_s
        self._fault_since_s = 0.0
        self.fault: Exception | None = None
        """What is wrong with Redis now."""

    def renew(self) -> None:
        """Redis has answered."""
        self.fault = None

    def suffer(self, fault: Exception, *, since_s: float | None = None) -> bool:
        """Note a fault, of a call that began at `since_s` of the loop's clock; whether patience is left."""
        now_s = asyncio.get_running_loop().time()
        if self.fault is None:
            self._fault_since_s = now_s if since_s is None else since_s
        self.fault = fault
        return now_s < self._fault_since_s + self._outage_s

    async def until_answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns, which may be repeated. Raises its QueueUnavailable when patience is at its end."""
        while True:
            since_s = asyncio.get_running_loop().time()
            try:
                answer = await call()
            except QueueUnavailable as fault:
                if not self.suffer(fault, since_s=since_s) or isinstance(fault.__cause__, _REFUSALS):
                    raise
            else:
                self.renew()
                return answer
            await asyncio.sleep(_RETRY_S)
