"""The answers that one process has in memory: the last used, bounded in bytes. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["Memory"]

OVERHEAD_BYTES: Final = 500
"""Of an entry, besides its answer."""


class _Entry(NamedTuple):
    data: bytes
    stored_ms: float
    ends_ms: float


class Memory:
    """Answers as they are stored, by digest. Times are ms of Redis's clock."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: str, *, ttl_ms: float, now_ms: float) -> bytes | None:
        """The answer, if it is no older than `ttl_ms` and has not ended. On any thread: each of its steps is whole."""
        entry = self._entries.get(digest)
        if entry is None or now_ms >= entry.ends_ms or now_ms - entry.stored_ms > ttl_ms:
            return None
        with suppress(KeyError):  # it was dropped just now
            self._entries.move_to_end(digest)
        return entry.data

    def put(self, digest: str, data: bytes, *, stored_ms: float, ends_ms: float) -> None:
        """Keep it; what was used longest ago makes room. One larger than all the room is not kept."""
        self._drop(digest)
        size = len(data) + OVERHEAD_BYTES
        if size > self._most_bytes:
            return
        self._entries[digest] = _Entry(data, stored_ms, ends_ms)
        self.bytes += size
        while self.bytes > self._most_bytes:
            self._take_off(self._entries.popitem(last=False)[1])

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _drop(self, digest: str) -> None:
        if (entry := self._entries.pop(digest, None)) is not None:
            self._take_off(entry)

    def _take_off(self, entry: _Entry) -> None:
        self.bytes -= len(entry.data) + OVERHEAD_BYTES
