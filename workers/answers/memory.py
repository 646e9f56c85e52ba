"""The answers that one process has in memory: the last used, bounded in bytes. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Memory"]

OVERHEAD_BYTES: Final = 500
"""Of an entry, besides its answer."""


class Memory:
    """Answers as they are stored, by digest. Times are ms of Redis's clock."""

    def __init__(self, most_bytes: int, *, redis_s: Callable[[], float]) -> None:
        """`redis_s` gives the time of Redis's clock (epoch seconds)."""
        self._most_bytes = most_bytes
        self._redis_s = redis_s
        # The data, when it was stored and when it ends. No named tuples: these are made for each job.
        self._entries: OrderedDict[str, tuple[bytes, float, float]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: str, *, ttl_s: float) -> bytes | None:
        """The answer, if it is no older than `ttl_s` and has not ended. On any thread: each of its steps is whole."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        data, stored_ms, ends_ms = entry
        now_ms = self._redis_s() * 1000
        if now_ms >= ends_ms or now_ms - stored_ms > ttl_s * 1000:
            return None
        with suppress(KeyError):  # it was dropped just now
            self._entries.move_to_end(digest)
        return data

    def keep(self, answers: Iterable[tuple[str, bytes, int]]) -> None:
        """Remember answers of this process that are stored now: digest, data, and for how many ms."""
        now_ms = self._redis_s() * 1000
        for digest, data, ttl_ms in answers:
            self.put(digest, data, stored_ms=now_ms, ends_ms=now_ms + ttl_ms)

    def put(self, digest: str, data: bytes, *, stored_ms: float, ends_ms: float) -> None:
        """Keep it; what was used longest ago makes room. One larger than all the room is not kept."""
        entries, size = self._entries, len(data) + OVERHEAD_BYTES
        if digest in entries:
            self._take_off(entries.pop(digest)[0])
        if size > self._most_bytes:
            return
        entries[digest] = data, stored_ms, ends_ms
        self.bytes += size
        while self.bytes > self._most_bytes:
            self._take_off(entries.popitem(last=False)[1][0])

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _take_off(self, data: bytes) -> None:
        self.bytes -= len(data) + OVERHEAD_BYTES
