"""Waiting for results: one pub/sub connection for all who wait on an event loop.

Celery's result backend publishes a job's whole result record on a channel of the result's name. Pub/sub alone may
miss one (before the subscription, during a reconnect), so each confirmed subscription is followed by a look at the
stored result; and every few seconds all that is still waited for is looked at again, so that neither a lost message
nor a wiped Redis makes anybody wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from ..errors import QueueUnavailable, ResultTimeout, UnknownJob
from ..redis.cancellation import is_stopped, stop
from ..redis.connection import RedisConnection
from ..results import PromptResult
from ..wire.record import decoded
from .batching import Batcher
from .job_store import Sighting
from .patience import Patience

__all__ = ["ResultWaiter", "unknown_job"]

_RECHECK_S: Final = 3.0
_RECONNECT_S: Final = 0.1
_IDLE_S: Final = 30.0
"""With nobody waiting, the connection is kept this long: the next caller is likely to come."""

_RedisFault = (redis_errors.RedisError, OSError)


class ResultWaiter:
    """Belongs to one event loop.

    `look` reads what is known of many jobs, one after another. An outage of Redis is ridden out for `outage_s`; then
    all who wait get QueueUnavailable.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        channel_prefix: str,
        look: Callable[[list[str]], AsyncIterator[tuple[str, Sighting]]],
        outage_s: float,
        recheck_s: float = _RECHECK_S,
    ) -> None:
        self._connection = connection
        self._prefix = channel_prefix
        self._look = look
        self._patience = Patience(outage_s)
        self._recheck_s = recheck_s
        self._waiting: dict[str, set[asyncio.Future[PromptResult]]] = {}
        self._ended_without_result: set[str] = set()
        self._pubsub: AbstractConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._subscribing = Batcher(self._subscribe)
        self._unsubscribing = Batcher(self._unsubscribe)
        self._looking = Batcher(self._look_at)
        self._last_used_s = 0.0

    async def wait(self, job_id: str, *, timeout_s: float | None) -> PromptResult:
        """How the job ended. Raises UnknownJob, ResultTimeout, or QueueUnavailable."""
        future: asyncio.Future[PromptResult] = asyncio.get_running_loop().create_future()
        self._start()
        self._join(job_id, future)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise self._timed_out(job_id, timeout_s) from None
        finally:
            self._leave(job_id, future)

    async def aclose(self) -> None:
        """Stop listening. Whoever still waits is cancelled."""
        for batcher in (self._subscribing, self._unsubscribing, self._looking):
            await batcher.aclose()
        tasks, self._tasks = self._tasks, []
        await stop(*tasks)
        for future in [future for futures in self._waiting.values() for future in futures]:
            future.cancel()

    # -- who waits for what

    def _join(self, job_id: str, future: asyncio.Future[PromptResult]) -> None:
        if job_id in self._waiting:
            self._waiting[job_id].add(future)
            return
        self._waiting[job_id] = {future}
        self._subscribing.add(job_id)

    def _leave(self, job_id: str, future: asyncio.Future[PromptResult]) -> None:
        self._last_used_s = _now_s()
        futures = self._waiting.get(job_id, set())
        futures.discard(future)
        if not futures and self._waiting.pop(job_id, None) is not None:
            self._ended_without_result.discard(job_id)
            self._unsubscribing.add(job_id)

    def _resolve(self, job_id: str, outcome: PromptResult | Exception | None) -> None:
        if outcome is None:
            return
        for future in self._waiting.get(job_id, ()):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _timed_out(self, job_id: str, timeout_s: float | None) -> ResultTimeout | QueueUnavailable:
        if self._patience.fault is not None:
            return self._given_up(self._patience.fault, f"Job {job_id} may have ended; ask again.")
        return ResultTimeout(
            f"job {job_id} has not ended within {timeout_s:.3g} s; it goes on, so ask again later or cancel it"
        )

    # -- listening

    def _start(self) -> None:
        self._last_used_s = _now_s()
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._recheck())]

    def _idle(self) -> bool:
        return not self._waiting and _now_s() > self._last_used_s + _IDLE_S

    async def _listen(self) -> None:
        while not is_stopped():
            try:
                await self._listen_once()
            except _RedisFault as error:
                self._suffer(error)
                await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        pubsub = await self._connection.connect_link()
        try:
            self._pubsub = pubsub
            self._subscribing.add(*self._waiting)
            while not is_stopped():
                # The recheck sends a PING each time: a longer silence means that the link is dead.
                message = await pubsub.read_response(
                    disable_decoding=True, timeout=2 * self._recheck_s + self._connection.timeout_s
                )
                if message is None:
                    raise redis_errors.TimeoutError("pub/sub is silent")
                self._patience.renew()
                if isinstance(message, list):  # while nothing is subscribed, a PING is answered with a bare "PONG"
                    await self._receive(*message)
        finally:
            self._pubsub = None
            await pubsub.disconnect(nowait=True)

    async def _receive(self, kind: bytes, channel: bytes = b"", payload: bytes = b"") -> None:
        job_id = channel.decode().removeprefix(self._prefix)
        if kind == b"message":
            self._resolve(job_id, await decoded(job_id, payload))
        elif kind == b"subscribe" and job_id in self._waiting:
            self._looking.add(job_id)

    async def _subscribe(self, job_ids: list[str]) -> None:
        await self._send("SUBSCRIBE", *(self._prefix + job_id for job_id in job_ids if job_id in self._waiting))

    async def _unsubscribe(self, job_ids: list[str]) -> None:
        # Somebody may have come back to a job in the meantime.
        await self._send("UNSUBSCRIBE", *(self._prefix + job_id for job_id in job_ids if job_id not in self._waiting))

    async def _send(self, command: str, *args: str) -> None:
        """Without a connection there is nothing to do: a new one subscribes to all that is waited for.

        Of one that is broken, redis-py would make a new one here, behind the listener's back.
        """
        if self._pubsub is not None and self._pubsub.is_connected and (args or command == "PING"):
            with suppress(*_RedisFault):  # the listener sees the broken connection too, and makes a new one
                await self._pubsub.send_command(command, *args)

    # -- looking

    async def _recheck(self) -> None:
        while not self._idle() and not is_stopped():
            await asyncio.sleep(self._recheck_s)
            await self._send("PING")
            self._looking.add(*self._waiting)
        self._rest()

    def _rest(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()

    async def _look_at(self, job_ids: list[str]) -> None:
        wanted = [job_id for job_id in dict.fromkeys(job_ids) if job_id in self._waiting]
        if not wanted:
            return
        try:
            async for job_id, sighting in self._look(wanted):
                self._resolve(job_id, self._judge(job_id, sighting))
        except QueueUnavailable as error:
            self._suffer(error)

    def _judge(self, job_id: str, sighting: Sighting) -> PromptResult | UnknownJob | None:
        if sighting.result is not None:
            return sighting.result
        if sighting.state is None:
            return unknown_job(job_id)
        if not sighting.ended:
            return None
        if job_id in self._ended_without_result:
            return unknown_job(job_id)
        # Its result may be on its way; believe it the second time.
        self._ended_without_result.add(job_id)
        return None

    def _suffer(self, error: Exception) -> None:
        if self._patience.suffer(error):
            return
        for job_id in self._waiting:
            self._resolve(job_id, self._given_up(error))

    def _given_up(self, error: Exception, advice: str = "") -> QueueUnavailable:
        if isinstance(error, QueueUnavailable):
            return QueueUnavailable(f"{error} {advice}".rstrip())
        return self._connection.translated(error, advice)


def unknown_job(job_id: str) -> UnknownJob:
    """The error for an id of which there is neither a record nor a result."""
    return UnknownJob(
        f"no job {job_id} is known: the id is wrong, its result has expired, or Redis was wiped. "
        "(A job of a stock Celery producer is known from when a worker takes it.)"
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
