"""The entries of answers that come in pieces, as one event loop hears of them: workers publish each that they write."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, cast

from ...redis.connection import RedisConnection, answer
from ...wire import redis_keys
from ..place import Place
from ..subscriptions import Subscriptions

__all__ = ["Entry", "StreamEntries"]

Kind = Literal["b", "t", "f", "e"]
"""As write.lua has them: begun, text, full, ended."""

_PAGE_ENTRIES: Final = 1_000


class Entry(NamedTuple):
    """`chars`: where in the run's text it ends."""

    run: int
    chars: int
    kind: Kind
    text: str


class Inbox:
    """What one reader gets; None: something may have been missed, or is there already, so it is to look.

    As an `asyncio.Queue`, but taken from in bulk, and 1 us cheaper a piece.
    """

    __slots__ = ("_found", "_waiting")

    def __init__(self) -> None:
        self._found: list[Entry | None] = []
        self._waiting: asyncio.Future[None] | None = None

    def put(self, entry: Entry | None) -> None:
        """For the loop's thread."""
        self._found.append(entry)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def take(self) -> list[Entry | None]:
        """All that has come since the last time; waits for something."""
        while not self._found:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self.take_now()

    def take_now(self) -> list[Entry | None]:
        """What has come, if anything."""
        found, self._found = self._found, []
        return found


class StreamEntries:
    """Belongs to one event loop."""

    def __init__(self, connection: RedisConnection, place: Place) -> None:
        self._connection = connection
        self._prefix = place.key(redis_keys.STREAM_PREFIX)
        self._readers: dict[str, set[Inbox]] = {}
        self._heard: set[str] = set()
        """Jobs of which entries have come since the last recheck: a reader sees by the next what it has missed."""
        self._subscriptions = Subscriptions(connection, self, prefix=self._prefix, wanted=self._readers)

    def join(self, job_id: str) -> Inbox:
        """Hear of the job's entries from now on, and when to look for earlier ones. Then `leave`."""
        inbox = Inbox()
        self._subscriptions.start()
        if job_id in self._readers:
            self._readers[job_id].add(inbox)
            inbox.put(None)
        else:
            self._readers[job_id] = {inbox}
            self._subscriptions.add(job_id)
        return inbox

    def leave(self, job_id: str, inbox: Inbox) -> None:
        inboxes = self._readers.get(job_id, set())
        inboxes.discard(inbox)
        if not inboxes and self._readers.pop(job_id, None) is not None:
            self._heard.discard(job_id)
            self._subscriptions.remove(job_id)

    async def read(self, job_id: str, *, run: int, chars: int) -> list[Entry]:
        """What stands in the stream after this place. Raises QueueUnavailable."""
        found: list[Entry] = []
        place = f"({run}-{chars}" if chars or run > 1 else "-"
        while True:
            async with self._connection.border():
                stream = self._connection.redis.xrange(self._prefix + job_id, place, "+", count=_PAGE_ENTRIES)
                page: list[tuple[str, dict[str, str]]] = await answer(stream)
            found += [_entry(entry_id, kind, text) for entry_id, fields in page for kind, text in fields.items()]
            if len(page) < _PAGE_ENTRIES:
                return found
            place = f"({page[-1][0]}"

    async def aclose(self) -> None:
        """Stop listening. Readers are told to look, and find that nothing answers."""
        await self._subscriptions.aclose()

    # -- what is heard (see `Listener`)

    def receive(self, job_id: str, payload: bytes) -> None:
        """An entry."""
        if inboxes := self._readers.get(job_id):
            self._heard.add(job_id)
            entry = _published(payload)
            for inbox in inboxes:
                inbox.put(entry)

    def look(self, job_ids: Iterable[str]) -> None:
        """See `Listener.look`."""
        for job_id in job_ids:
            for inbox in self._readers.get(job_id, ()):
                inbox.put(None)

    def recheck(self, job_ids: Iterable[str]) -> None:
        """See `Listener.recheck`. To look at all at once would delay those whose entries come all the time."""
        jobs, heard = set(job_ids), self._heard
        self.look(jobs - heard)
        heard -= jobs

    def note_alive(self) -> None:
        """See `Listener.note_alive`."""

    def suffer(self, error: Exception) -> None:
        """See `Listener.suffer`. Who reads hears of an outage from the wait for the result, which rides it out for as
        long as it is to."""


def _published(payload: bytes) -> Entry:
    entry_id, kind, text = payload.decode(errors="surrogateescape").split(" ", 2)
    return _entry(entry_id, kind, text)


def _entry(entry_id: str, kind: str, text: str) -> Entry:
    run, _, chars = entry_id.partition("-")
    return Entry(int(run), int(chars), cast("Kind", kind), text)
