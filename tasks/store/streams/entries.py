"""The entries of answers that come in pieces, as one event loop hears of them: one connection for all its readers.

Workers publish each entry that they write. Pub/sub alone may miss one (before the subscription, during a reconnect), so
each confirmed subscription is followed by a look at the stream, and so is every few seconds.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final, Literal, NamedTuple, cast

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from ...redis.cancellation import is_stopped, stop
from ...redis.connection import RedisConnection, answer
from ...wire import redis_keys
from ..batching import Batcher
from ..settings import StoreSettings

__all__ = ["Entry", "StreamEntries"]

Kind = Literal["b", "t", "f", "e"]
"""As write.lua has them: begun, text, full, ended."""

_RECHECK_S: Final = 3.0
_RECONNECT_S: Final = 0.1
_IDLE_S: Final = 30.0
"""With nobody reading, the connection is kept this long: the next reader is likely to come."""
_PAGE_ENTRIES: Final = 1_000

_RedisFault = (redis_errors.RedisError, OSError)


class Entry(NamedTuple):
    """`chars`: where in the run's text it ends."""

    run: int
    chars: int
    kind: Kind
    text: str


Inbox = asyncio.Queue[Entry | None]
"""What a reader gets; None: something may have been missed, or is there already, so it is to look."""


class StreamEntries:
    """Belongs to one event loop."""

    def __init__(self, connection: RedisConnection, settings: StoreSettings, *, recheck_s: float = _RECHECK_S) -> None:
        self._connection = connection
        self._prefix = settings.key(redis_keys.STREAM_PREFIX)
        self._recheck_s = recheck_s
        self._readers: dict[str, set[Inbox]] = {}
        self._link: AbstractConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._subscribing = Batcher(self._subscribe)
        self._unsubscribing = Batcher(self._unsubscribe)
        self._last_used_s = 0.0

    def join(self, job_id: str) -> Inbox:
        """Hear of the job's entries from now on, and when to look for earlier ones. Then `leave`."""
        inbox: Inbox = asyncio.Queue()
        self._start()
        if job_id in self._readers:
            self._readers[job_id].add(inbox)
            inbox.put_nowait(None)
        else:
            self._readers[job_id] = {inbox}
            self._subscribing.add(job_id)
        return inbox

    def leave(self, job_id: str, inbox: Inbox) -> None:
        self._last_used_s = _now_s()
        inboxes = self._readers.get(job_id, set())
        inboxes.discard(inbox)
        if not inboxes and self._readers.pop(job_id, None) is not None:
            self._unsubscribing.add(job_id)

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
        for batcher in (self._subscribing, self._unsubscribing):
            await batcher.aclose()
        tasks, self._tasks = self._tasks, []
        await stop(*tasks)

    # -- listening

    def _start(self) -> None:
        self._last_used_s = _now_s()
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._recheck())]

    async def _listen(self) -> None:
        while not is_stopped():
            # Who reads hears of an outage from the wait for the result, which rides it out for as long as it is to.
            with suppress(*_RedisFault):
                await self._listen_once()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        link = await self._connection.connect_link()
        try:
            self._link = link
            self._subscribing.add(*self._readers)
            while not is_stopped():
                # The recheck sends a PING each time: a longer silence means that the link is dead.
                message = await link.read_response(
                    disable_decoding=True, timeout=2 * self._recheck_s + self._connection.timeout_s
                )
                if message is None:
                    raise redis_errors.TimeoutError("pub/sub is silent")
                if isinstance(message, list):
                    self._receive(*message)
        finally:
            self._link = None
            await link.disconnect(nowait=True)

    def _receive(self, kind: bytes, channel: bytes = b"", payload: bytes = b"") -> None:
        if kind not in (b"message", b"subscribe"):
            return
        inboxes = self._readers.get(channel.decode().removeprefix(self._prefix))
        if inboxes:
            entry = _published(payload) if kind == b"message" else None
            for inbox in inboxes:
                inbox.put_nowait(entry)

    async def _subscribe(self, job_ids: list[str]) -> None:
        await self._send("SUBSCRIBE", *(self._prefix + job_id for job_id in job_ids if job_id in self._readers))

    async def _unsubscribe(self, job_ids: list[str]) -> None:
        # Somebody may have come back to a job in the meantime.
        await self._send("UNSUBSCRIBE", *(self._prefix + job_id for job_id in job_ids if job_id not in self._readers))

    async def _send(self, command: str, *args: str) -> None:
        # Without a connection there is nothing to do: a new one subscribes to all that is read.
        if self._link is not None and self._link.is_connected and (args or command == "PING"):
            with suppress(*_RedisFault):  # the listener sees the broken connection too
                await self._link.send_command(command, *args)

    async def _recheck(self) -> None:
        while self._readers or _now_s() <= self._last_used_s + _IDLE_S:
            await asyncio.sleep(self._recheck_s)
            if is_stopped():
                return
            await self._send("PING")
            for inboxes in self._readers.values():
                for inbox in inboxes:
                    inbox.put_nowait(None)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()


def _published(payload: bytes) -> Entry:
    entry_id, kind, text = payload.decode(errors="surrogateescape").split(" ", 2)
    return _entry(entry_id, kind, text)


def _entry(entry_id: str, kind: str, text: str) -> Entry:
    run, _, chars = entry_id.partition("-")
    return Entry(int(run), int(chars), cast("Kind", kind), text)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
