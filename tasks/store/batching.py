"""Many small requests to Redis, sent together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ..redis.cancellation import stop

__all__ = ["Batcher"]

T = TypeVar("T")


class Batcher(Generic[T]):
    """Hands items to `flush` in batches, one call at a time: while one is under way, the next fills up.

    Alone, an item leaves at once; under load the round trips are shared, and no timer is involved. `flush` must
    deal with its own errors: nobody awaits it.
    """

    def __init__(self, flush: Callable[[list[T]], Awaitable[None]], *, max_items: int = 500) -> None:
        self._flush = flush
        self._max_items = max_items
        self._items: list[T] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, *items: T) -> None:
        """Must be called on the event loop."""
        self._items += items
        if self._task is None and self._items:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._items:
                batch, self._items = self._items[: self._max_items], self._items[self._max_items :]
                await self._flush(batch)
        finally:
            self._task = None

    async def aclose(self) -> None:
        """Drop what is waiting and stop."""
        self._items.clear()
        if self._task is not None:
            await stop(self._task)
