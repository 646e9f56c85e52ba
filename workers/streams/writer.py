"""What all feeds of a process have to say goes to Redis in one script call a tick, which takes some milliseconds, or
until many of them have something to say.

Nothing here holds a job up: while Redis is away or full its answer is put together all the same, and whoever reads gets
the text from the result.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from tasks.redis.cancellation import stop, within
from tasks.redis.connection import ScriptRunner
from tasks.redis.script import Script
from tasks.wire import redis_keys

from ..redis.link import AWAY, BATCH_TIMEOUT_S, TURNS, portions
from .asked import asked
from .feeds import Feed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

__all__ = ["Streams"]

logger = logging.getLogger("promptmill.streams")

WRITE: Final = Script.read(Path(__file__).with_name("lua"), "write")

AT_ONCE: Final = 256
"""Feeds of one script call: about a millisecond of Redis's time."""

ENOUGH: Final = 50
"""So many feeds with something to say end a tick early: more would save little of the trip's cost a piece, and a large
script call is late with all that it says, at Redis as at the readers."""

END_S: Final = 1.0
"""How long an answer's end may hold up its result. Should Redis have it later, a reader compares texts."""

AWAY_S: Final = 1.0
"""After Redis did not take it, the same is said again after this."""

LOST, AGAIN = -1, -2
"""Replies of write.lua; any other is the number of the run."""


class Streams:
    """Of one worker process. Belongs to one event loop; close it."""

    def __init__(
        self,
        redis: Redis,
        *,
        coalesce_ms: int = 25,
        max_bytes: int = 4_194_304,
        keep_s: int = 600,
        key_prefix: str = "",
    ) -> None:
        """Pieces that come within `coalesce_ms` travel together. `max_bytes`: how much of an answer is written.
        `keep_s`: how long a stream is kept after its end."""
        self.asked = asked
        # Not over a `Link`, whose batches take a busy loop eight turns instead of three: each is as late as all tokens
        # that came in it.
        self._write = ScriptRunner(redis, WRITE)
        self._coalesce_s = coalesce_ms / 1000
        self._most_bytes = max_bytes
        self._asked_key = key_prefix + redis_keys.STREAMS_ASKED
        self._names = {
            "streams": key_prefix + redis_keys.STREAM_PREFIX,
            "ttl_s": redis_keys.RECORD_TTL_S,
            "keep_s": keep_s,
        }
        self._waiting: list[Feed] = []
        self._sender: asyncio.Task[None] | None = None
        self._pause: asyncio.Future[None] | None = None
        self._is_away = False

    def open(self, job_id: str) -> Feed:
        """The feed of a job whose answer somebody reads."""
        return Feed(job_id, most_bytes=self._most_bytes, note=self._note)

    async def end(self, feed: Feed, text: str) -> None:
        """Write the end of an answer, before its result is stored. Waits for Redis, but not long."""
        self.asked.forget(feed.job_id)
        if feed.is_lost:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        feed.end(text, ended)
        if self._is_away:
            return
        self._end_tick()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await ended

    def give_up(self, feed: Feed) -> None:
        """The job has ended without an answer."""
        self.asked.forget(feed.job_id)
        feed.close()

    async def close(self) -> None:
        """What still waits is given up."""
        if self._sender is not None:
            await stop(self._sender)

    def _note(self, feed: Feed) -> None:
        self._waiting.append(feed)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())
        elif len(self._waiting) == ENOUGH and not self._is_away:
            self._end_tick()

    def _end_tick(self) -> None:
        if self._pause is not None:
            _finish(self._pause)

    async def _send(self) -> None:
        try:
            while self._waiting:
                feeds, self._waiting = self._waiting, []
                for part in portions(feeds, AT_ONCE):
                    await self._tell(part)
                if self._is_away:
                    await self._rest(AWAY_S)
                elif len(self._waiting) < ENOUGH:
                    await self._rest(self._coalesce_s)
        except Exception:  # a fault of ours must not silence all streams for good, unseen
            logger.exception("A fault while writing streamed answers; their readers get the text at the end")
        finally:
            self._sender = None

    async def _rest(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._pause = loop.create_future()
        timer = loop.call_later(seconds, _finish, self._pause)
        try:
            await self._pause
        finally:
            timer.cancel()

    async def _tell(self, feeds: Sequence[Feed]) -> None:
        ask = orjson.dumps({**self._names, "feeds": [feed.take() for feed in feeds]})
        try:
            with within(BATCH_TIMEOUT_S, turns=TURNS):
                replies: Sequence[Any] = await self._write([self._asked_key], [ask])
        except AWAY as error:
            self._note_away(type(error).__name__)
            replies = [AGAIN] * len(feeds)
        else:
            if AGAIN in replies:
                self._note_away("it is full, or takes no writes")
            else:
                self._is_away = False
        for feed, reply in zip(feeds, replies, strict=True):
            if reply == AGAIN:
                feed.again()
            elif reply == LOST:
                feed.lose()
            else:
                feed.arrived(reply)

    def _note_away(self, reason: str) -> None:
        if not self._is_away:
            logger.warning(
                "Redis does not take streamed answers (%s); whoever reads them gets the text at the end", reason
            )
        self._is_away = True


def _finish(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)
