"""One job's outcome on its way to Redis: the value, the record, its compression. No I/O."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import orjson
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC

from tasks.wire import redis_keys

from ..prompt.compression import compressed

__all__ = ["Entry", "JSONResult"]

_COMPRESSED = COMPRESSED_PAYLOAD_MAGIC + b"application/x-gzip\0"
"""How Celery 5.7 marks a compressed record (celery/backends/base.py, `compress_payload`); kombu's name for zlib."""


class JSONResult:
    """A task's return value that holds plain JSON types only (str keys; no dates, no UUIDs).

    The backend encodes it with orjson, several times as fast as kombu's encoder. It is no dict, because Celery writes
    the content of every dict that a task returns into logs and events (celery/utils/saferepr.py), and takes 50 us to.

    `compressible`: whoever reads it knows compressed records, as our client does, and Celery from 5.7 on. `held`: kept
    for as long as the value is in memory. Of a large one only the record is, once there is one (`keep_record`).
    """

    __slots__ = ("_value", "compressible", "held", "record")

    def __init__(self, value: dict[str, Any], *, compressible: bool = False, held: object = None) -> None:
        self._value: dict[str, Any] | None = value
        self.compressible = compressible
        self.held = held
        self.record: bytes | None = None

    @property
    def value(self) -> dict[str, Any]:
        """What the task returned; read from its record where only that was kept."""
        if self._value is not None:
            return self._value
        record = self.record or b""
        if record.startswith(_COMPRESSED):
            record = zlib.decompress(record.removeprefix(_COMPRESSED))
        value: dict[str, Any] = orjson.loads(record)["result"]
        return value

    def keep_record(self, record: bytes) -> None:
        """Keep the record instead of the value, which may be several times as large in memory."""
        self._value, self.record = None, record

    def __json__(self) -> dict[str, Any]:
        """What kombu's encoder writes for it: the next task of a chain is given the dict."""
        return self.value

    def __repr__(self) -> str:
        return "<JSON hidden>" if self._value is None else f"<{len(self._value)} fields hidden>"


class Entry(NamedTuple):
    """One job's outcome on its way to Redis."""

    key: str
    record: bytes | str
    is_end: bool
    counter: str
    job_id: str
    group_id: str | None
    tag: str
    """The message's delivery tag, where it is under a lease of ours."""
    is_large: bool = False
    """The record is compressed on its way, not on the loop's thread."""
    result: JSONResult | None = None
    """What keeps the record in memory besides, of one that is huge."""

    @property
    def size(self) -> int:
        """About how many bytes it is to Redis."""
        return len(self.record)

    def packed(self) -> Entry:
        """With its record compressed, if it is to be and that makes it smaller by a third at least."""
        record = self.record
        if not self.is_large or not isinstance(record, bytes):
            return self
        if (packed := compressed(record)) is None:
            return self._replace(is_large=False)
        return self._replace(record=_COMPRESSED + packed, is_large=False)

    def script_keys(self, prefix: str) -> tuple[str, str, str]:
        """The KEYS of store.lua. `prefix` stands before our own keys; Celery's has it already."""
        if self.group_id is None:
            return self.key, "", ""
        return self.key, prefix + redis_keys.group(self.group_id), prefix + redis_keys.group_done(self.group_id)

    def script_args(self) -> tuple[bytes | str, int, str, str, str]:
        """The ARGV of store.lua."""
        return self.record, int(self.is_end), self.counter, self.job_id, self.tag
