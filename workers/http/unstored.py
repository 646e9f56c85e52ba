"""How much of the answers that a worker process has read and not stored yet may be in its memory at a time.

An answer of 8 MB is held as body, as parsed JSON and as record, and a place in the pool says nothing about sizes. So a
large body is read on when there is room for it; until then it waits in the provider's sockets. And handling megabytes
of JSON stops the loop (80 ms for 8 MB of text), so large answers take turns, with as long a pause after each.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from contextlib import suppress
from typing import Final

__all__ = ["UNCOUNTED_BYTES", "Share", "Unstored"]

UNCOUNTED_BYTES: Final = 64 * 1024
"""An answer up to this size is not counted: the places in the pool bound those."""


class Share:
    """One answer's part. What it has taken is given back when nobody holds it any more."""

    __slots__ = ("_of", "number", "size")

    def __init__(self, of: Unstored, number: int) -> None:
        self._of = of
        self.number = number
        self.size = 0

    async def grow(self, size: int) -> None:
        """Take `size` bytes in all. Waits for room, but never the eldest share: one answer may always go on."""
        more = size - self.size
        if more > 0:
            await self._of.take(self, more)

    def __del__(self) -> None:
        self._of.give_back(self)


class Unstored:
    """The bytes of one process. Make it on the loop that uses it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._eldest_first: dict[int, None] = {}
        self._waiting: deque[_Place] = deque()
        self._turns = asyncio.Lock()
        self._free_at = 0.0

    def open(self) -> Share:
        """A share for an answer that turns out to be large."""
        share = Share(self, next(self._numbers))
        self._eldest_first[share.number] = None
        return share

    async def take(self, share: Share, more: int) -> None:
        """See `Share.grow`."""
        if self._may_take(share, more) and not (self._waiting and share.size == 0):
            self._grant(share, more)
            return
        place = share, more, self._loop.create_future()
        # Who holds something already goes first, for it is nearer to its end.
        if share.size:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        try:
            await place[2]
        finally:
            if place in self._waiting:
                self._waiting.remove(place)

    def give_back(self, share: Share) -> None:
        """From any thread: a share is gone."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._given_back, share.number, share.size)

    async def turn(self) -> None:
        """Wait for leave to handle a large answer, which then happens without a pause of the caller's own."""
        async with self._turns:
            await asyncio.sleep(self._free_at - time.monotonic())
            self._loop.call_soon(self._turn_ended, time.monotonic())

    def _turn_ended(self, began_at: float) -> None:
        now = time.monotonic()
        self._free_at = now + (now - began_at)

    def _may_take(self, share: Share, more: int) -> bool:
        return self.held + more <= self.limit or next(iter(self._eldest_first)) == share.number

    def _grant(self, share: Share, more: int) -> None:
        share.size += more
        self.held += more

    def _given_back(self, number: int, size: int) -> None:
        del self._eldest_first[number]
        self.held -= size
        while (place := self._next()) is not None:
            self._waiting.remove(place)
            share, more, granted = place
            if not granted.done():
                self._grant(share, more)
                granted.set_result(None)

    def _next(self) -> _Place | None:
        """Who may go on now: the first, or the eldest wherever it waits."""
        for place in self._waiting:
            share, more, granted = place
            is_in_turn = place is self._waiting[0] or share.number == next(iter(self._eldest_first))
            if is_in_turn and (granted.done() or self._may_take(share, more)):
                return place
        return None


_Place = tuple[Share, int, "asyncio.Future[None]"]
"""A share that waits, and for how much more."""
