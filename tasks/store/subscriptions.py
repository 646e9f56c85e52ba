"""One pub/sub connection for all who listen on an event loop.

Pub/sub alone may miss a message (before the subscription, during a reconnect), so each confirmed subscription is
followed by a look at what is stored; and every few seconds all that is still waited for is looked at again, so that
neither a lost message nor a wiped Redis makes anybody wait for ever.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from ..redis.cancellation import is_stopped, stop
from ..redis.connection import RedisConnection
from .batching import Batcher

__all__ = ["Listener", "Subscriptions"]

_RECHECK_S: Final = 3.0
_RECONNECT_S: Final = 0.1
_EXTEND_S: Final = 1.0
"""How often the time-out of a link that is heard from is put off. A time-out of its own for each message costs more
than all else that is done with a small one."""
_PART: Final = 25
_PARTS: Final = 20
_PART_S: Final = 0.05
"""What is waited for is looked at again so many at a time, and in so many parts at most, with a pause after each: who
hears from Redis meanwhile is not held up by all of it."""
_IDLE_S: Final = 30.0
"""With nobody waiting, the connection is kept this long: the next caller is likely to come."""

_RedisFault = (redis_errors.RedisError, OSError)


class Listener(Protocol):
    """Who has the channels listened to."""

    def receive(self, job_id: str, payload: bytes) -> Awaitable[None] | None:
        """A message has come on the job's channel."""

    def look(self, job_ids: Iterable[str]) -> None:
        """Something was there before of these, or may have been missed."""

    def recheck(self, job_ids: Iterable[str]) -> None:
        """Some seconds have passed: whatever may have been missed meanwhile of these is to be looked for."""

    def note_alive(self) -> None:
        """Redis has answered."""

    def suffer(self, error: Exception) -> None:
        """The connection broke; another is made."""


class Subscriptions:
    """Belongs to one event loop."""

    def __init__(
        self, connection: RedisConnection, listener: Listener, *, prefix: str, wanted: Mapping[str, object]
    ) -> None:
        """The channels of jobs have `prefix` before their ids. `wanted` has the ids of those that somebody waits for,
        as its owner keeps them; `add` and `remove` say what has changed.
        """
        self._connection = connection
        self._listener = listener
        self._prefix = prefix
        self._wanted = wanted
        self._link: AbstractConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._subscribing = Batcher(self._subscribe)
        self._unsubscribing = Batcher(self._unsubscribe)
        self._last_used_s = 0.0

    def start(self) -> None:
        """Somebody is about to wait."""
        self._last_used_s = _now_s()
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._recheck())]

    def add(self, job_id: str) -> None:
        """The first who waits for the job has come."""
        self._subscribing.add(job_id)

    def remove(self, job_id: str) -> None:
        """Nobody waits for the job any more."""
        self._last_used_s = _now_s()
        self._unsubscribing.add(job_id)

    async def aclose(self) -> None:
        """Stop listening."""
        for batcher in (self._subscribing, self._unsubscribing):
            await batcher.aclose()
        tasks, self._tasks = self._tasks, []
        await stop(*tasks)

    async def _listen(self) -> None:
        while not is_stopped():
            try:
                await self._listen_once()
            except _RedisFault as error:
                self._listener.suffer(error)
                await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        link = await self._connection.connect_link()
        task = asyncio.current_task()
        assert task is not None
        try:
            self._link = link
            self._subscribing.add(*self._wanted)
            # The recheck sends a PING each time: a longer silence means that the link is dead.
            silence_s, now_s = 2 * _RECHECK_S + self._connection.timeout_s, asyncio.get_running_loop().time
            async with asyncio.timeout(silence_s) as silence:
                extend_at = now_s() + _EXTEND_S
                while not task.cancelling():  # `is_stopped`, without its price for each message
                    message = await link.read_response(disable_decoding=True, timeout=math.inf)
                    if now_s() > extend_at:
                        silence.reschedule(now_s() + silence_s)
                        extend_at = now_s() + _EXTEND_S
                    self._listener.note_alive()
                    # While nothing is subscribed, a PING is answered with a bare "PONG".
                    if isinstance(message, list) and (more := self._receive(*message)) is not None:
                        silence.reschedule(None)
                        await more
                        silence.reschedule(now_s() + silence_s)
        finally:
            self._link = None
            await link.disconnect(nowait=True)

    def _receive(self, kind: bytes, channel: bytes = b"", payload: bytes = b"") -> Awaitable[None] | None:
        job_id = channel.decode().removeprefix(self._prefix)
        if kind == b"message":
            return self._listener.receive(job_id, payload)
        if kind == b"subscribe" and job_id in self._wanted:
            self._listener.look([job_id])
        return None

    async def _subscribe(self, job_ids: list[str]) -> None:
        await self._send("SUBSCRIBE", *(self._prefix + job_id for job_id in job_ids if job_id in self._wanted))

    async def _unsubscribe(self, job_ids: list[str]) -> None:
        # Somebody may have come back to a job in the meantime.
        await self._send("UNSUBSCRIBE", *(self._prefix + job_id for job_id in job_ids if job_id not in self._wanted))

    async def _send(self, command: str, *args: str) -> None:
        """Without a connection there is nothing to do: a new one subscribes to all that is waited for.

        Of one that is broken, redis-py would make a new one here, behind the listener's back.
        """
        if self._link is not None and self._link.is_connected and (args or command == "PING"):
            with suppress(*_RedisFault):  # the listener sees the broken connection too, and makes a new one
                await self._link.send_command(command, *args)

    async def _recheck(self) -> None:
        while not self._is_idle() and not is_stopped():
            await asyncio.sleep(_RECHECK_S)
            await self._send("PING")
            wanted = list(self._wanted)
            size = max(_PART, -(-len(wanted) // _PARTS))
            for start in range(0, len(wanted), size):
                self._listener.recheck(job_id for job_id in wanted[start : start + size] if job_id in self._wanted)
                await asyncio.sleep(_PART_S if start + size < len(wanted) else 0)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()

    def _is_idle(self) -> bool:
        return not self._wanted and _now_s() > self._last_used_s + _IDLE_S


def _now_s() -> float:
    return asyncio.get_running_loop().time()
