"""A group as Redis has it: its counters, its jobs, and those that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..redis.connection import RedisConnection, ScriptRunner, answer
from ..redis.script import Script
from ..wire import redis_keys
from .job_store import GroupEntry, GroupPage, GroupProgress
from .place import Place
from .terms import Writer

__all__ = ["Groups"]

CLOSE_GROUP: Final = Script.read(Path(__file__).with_name("lua"), "close_group")

_PAGE_ENTRIES: Final = 500


class Groups:
    """Their part of `Store`. What was submitted stands at the broker, what has ended at the results."""

    def __init__(self, broker: RedisConnection, results: RedisConnection, writer: Writer, place: Place) -> None:
        self._broker = broker
        self._results = results
        self._writer = writer
        self._place = place
        self._close_script = ScriptRunner(broker.redis, CLOSE_GROUP)

    async def close(self, group_id: str) -> int:
        """Sets the total to the number of jobs submitted."""
        async with self._broker.border():
            total = await self._writer.write(self._close_script, self._place.group(group_id))
        return int(total)

    async def progress(self, group_id: str) -> GroupProgress | None:
        """What was submitted stands at the broker, what has ended at the results: one hash unless they are apart."""
        submitted_key, ended_key = self._group_hashes(group_id)
        fields = await _hgetall(self._broker, submitted_key)
        if "total" not in fields:
            return None
        if self._is_kept_apart(group_id):
            fields = await _hgetall(self._results, ended_key) | fields
        return _progress(fields)

    def _group_hashes(self, group_id: str) -> tuple[str, str]:
        return self._place.key(redis_keys.group(group_id)), self._place.result_side(redis_keys.group(group_id))

    def _is_kept_apart(self, group_id: str) -> bool:
        submitted_key, ended_key = self._group_hashes(group_id)
        return self._results is not self._broker or submitted_key != ended_key

    async def jobs(self, group_id: str, *, start: int, count: int) -> list[str]:
        """Read from the group's list."""
        async with self._broker.border():
            ids: list[str] = await answer(
                self._broker.redis.lrange(self._place.key(redis_keys.group_jobs(group_id)), start, start + count - 1)
            )
        return ids

    async def ended(self, group_id: str, *, after: GroupEntry | None, wait_s: float) -> GroupPage | None:
        """Read from the group's stream. Waits at most half of `timeout_s`, or a silent Redis would look alike.

        The counters and the entry `after` come over the same connection, hence from the same Redis as the entries.
        """
        submitted_key, ended_key = self._group_hashes(group_id)
        submitted = await _hgetall(self._broker, submitted_key) if self._is_kept_apart(group_id) else {}
        stream = self._place.result_side(redis_keys.group_done(group_id))
        block_ms = round(min(wait_s, self._place.timeout_s / 2) * 1000) or None
        async with self._results.border(), self._results.waiting.pipeline(transaction=False) as pipe:
            pipe.hgetall(ended_key)
            pipe.xrange(stream, *_place(after), count=1)
            pipe.xread({stream: after.position if after else "0"}, count=_PAGE_ENTRIES, block=block_ms)
            ended, anchor, streams = await pipe.execute()
        fields = ended | submitted
        if "total" not in fields:
            return None
        entries = [GroupEntry(position, fields["id"]) for _, found in streams or () for position, fields in found]
        return GroupPage(_progress(fields), entries, follows=after is None or _is_there(after, anchor))

    async def has(self, group_id: str, entries: Sequence[GroupEntry]) -> list[bool]:
        """Looks for each under its position."""
        stream = self._place.result_side(redis_keys.group_done(group_id))
        async with self._results.border(), self._results.redis.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xrange(stream, *_place(entry), count=1)
            found = await pipe.execute()
        return [_is_there(entry, there) for entry, there in zip(entries, found, strict=True)]


def _progress(fields: Mapping[str, str]) -> GroupProgress:
    total = int(fields["total"])
    counts = {name: int(fields.get(name, 0)) for name in GroupProgress.__slots__ if name != "total"}
    return GroupProgress(total=total if total >= 0 else None, **counts)


def _place(entry: GroupEntry | None) -> tuple[str, str]:
    return (entry.position, entry.position) if entry else ("0", "0")


def _is_there(entry: GroupEntry, found: Sequence[tuple[str, Mapping[str, str]]]) -> bool:
    """Another Redis may have given the position to another job."""
    return any(fields.get("id") == entry.job_id for _, fields in found)


async def _hgetall(connection: RedisConnection, key: str) -> dict[str, str]:
    async with connection.border():
        fields: dict[str, str] = await answer(connection.redis.hgetall(key))
    return fields
