"""Waiting for results, which Celery's result backend publishes whole on a channel of the result's name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from ..errors import QueueUnavailable, ResultTimeout, UnknownJob
from ..redis.connection import RedisConnection
from ..results import PromptResult
from ..wire.record import decoded
from .batching import Batcher
from .job_store import Sighting
from .patience import Patience
from .subscriptions import Subscriptions

__all__ = ["ResultWaiter", "unknown_job"]


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
    ) -> None:
        self._connection = connection
        self._look = look
        self._patience = Patience(outage_s)
        self._waiting: dict[str, set[asyncio.Future[PromptResult]]] = {}
        self._ended_without_result: set[str] = set()
        self._looking = Batcher(self._look_at)
        self._subscriptions = Subscriptions(connection, self, prefix=channel_prefix, wanted=self._waiting)

    async def wait(self, job_id: str, *, timeout_s: float | None) -> PromptResult:
        """How the job ended. Raises UnknownJob, ResultTimeout, or QueueUnavailable."""
        future: asyncio.Future[PromptResult] = asyncio.get_running_loop().create_future()
        self._subscriptions.start()
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
        await self._looking.aclose()
        await self._subscriptions.aclose()
        for future in [future for futures in self._waiting.values() for future in futures]:
            future.cancel()

    # -- who waits for what

    def _join(self, job_id: str, future: asyncio.Future[PromptResult]) -> None:
        if job_id in self._waiting:
            self._waiting[job_id].add(future)
            return
        self._waiting[job_id] = {future}
        self._subscriptions.add(job_id)

    def _leave(self, job_id: str, future: asyncio.Future[PromptResult]) -> None:
        futures = self._waiting.get(job_id, set())
        futures.discard(future)
        if not futures and self._waiting.pop(job_id, None) is not None:
            self._ended_without_result.discard(job_id)
            self._subscriptions.remove(job_id)

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

    # -- what is heard (see `Listener`)

    async def receive(self, job_id: str, payload: bytes) -> None:
        """A job's result record."""
        self._resolve(job_id, await decoded(job_id, payload))

    def look(self, job_ids: Iterable[str]) -> None:
        """See `Listener.look`."""
        self._looking.add(*job_ids)

    def recheck(self, job_ids: Iterable[str]) -> None:
        """See `Listener.recheck`."""
        self.look(job_ids)

    def note_alive(self) -> None:
        """See `Listener.note_alive`."""
        self._patience.renew()

    def suffer(self, error: Exception) -> None:
        """See `Listener.suffer`. Who has waited for too long through an outage is told."""
        if self._patience.suffer(error):
            return
        for job_id in self._waiting:
            self._resolve(job_id, self._given_up(error))

    async def _look_at(self, job_ids: list[str]) -> None:
        wanted = [job_id for job_id in dict.fromkeys(job_ids) if job_id in self._waiting]
        if not wanted:
            return
        try:
            async for job_id, sighting in self._look(wanted):
                self._resolve(job_id, self._judge(job_id, sighting))
        except QueueUnavailable as error:
            self.suffer(error)

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
