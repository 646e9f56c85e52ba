"""Jobs kept in Redis, as one event loop sees them: what has become of them, and their ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from ..errors import QueueUnavailable
from ..redis.connection import RedisConnection, ScriptRunner
from ..redis.script import Script
from ..results import PromptResult
from ..wire import redis_keys
from ..wire.message import revoke_channel, revoke_message
from ..wire.record import decoded, failure, is_end
from .groups import Groups
from .job_store import Sighting
from .place import Place
from .streams import Streams
from .submitting import Submissions
from .terms import Writer
from .waiting import ResultWaiter

__all__ = ["RedisStore"]

_LUA: Final = Path(__file__).with_name("lua")
CANCEL: Final = Script.read(_LUA, "cancel")
FORGET: Final = Script.read(_LUA, "forget")
READ_RESULTS: Final = Script.read(_LUA, "read_results")

_PAGE_BYTES: Final = 4 * 1024 * 1024
"""Of stored results that are read at once: some 3 ms of Redis's time, and 1 s on a link of 32 Mbit/s. On a slower link
pages that came too late are halved, down to the least, and grow again by an eighth each."""
_LEAST_PAGE_BYTES: Final = 64 * 1024
_PAGE_ENTRIES: Final = 500

_TOLD_AT_ONCE: Final = 100
"""Of more cancelled jobs than this, workers hear at once only of those that run; of the others with a heartbeat."""


class RedisStore:
    """See `Store`. Belongs to the event loop on which it is made."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._broker = RedisConnection(place.broker, timeout_s=place.timeout_s)
        is_apart = place.is_apart
        self._results = RedisConnection(place.results, timeout_s=place.timeout_s) if is_apart else self._broker
        self._writer = Writer(self._broker, place)
        self._submissions = Submissions(self._broker, self._writer, place)
        self._groups = Groups(self._broker, self._results, self._writer, place)
        self.submit = self._submissions.submit
        self.submit_many = self._submissions.submit_many
        self.close_group = self._groups.close
        self.group_progress = self._groups.progress
        self.group_jobs = self._groups.jobs
        self.group_ended = self._groups.ended
        self.group_has = self._groups.has
        self._cancel_script = ScriptRunner(self._broker.redis, CANCEL)
        self._forget_script = ScriptRunner(self._broker.redis, FORGET)
        self._read_results_script = ScriptRunner(self._results.redis, READ_RESULTS, decodes=False)
        self._page_bytes = _PAGE_BYTES
        self.outage_s = place.outage_s
        self._waiter = ResultWaiter(
            self._results,
            channel_prefix=place.result_key_prefix + redis_keys.RESULT_PREFIX,
            look=self._look_at,
            outage_s=place.outage_s,
        )
        self._streams = Streams(self._broker, place, look=self.look, wait=self._waiter.wait)
        self.stream = self._streams.events

    async def look(self, job_id: str) -> Sighting:
        """One job's result and state."""
        [sighting] = [sighting async for _, sighting in self._look_at([job_id])]
        return sighting

    async def _look_at(self, job_ids: Sequence[str]) -> AsyncIterator[tuple[str, Sighting]]:
        # The records first: a job that ends in between has a result then, and is not taken for unknown.
        async with self._broker.border(), self._broker.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(self._place.record(job_id), "state")
            states = await pipe.execute()
        start = 0
        while start < len(job_ids):
            for result in await self.result_page(job_ids[start:]):
                state = states[start]
                yield job_ids[start], Sighting(result or _recorded_end(job_ids[start], state), state)
                start += 1

    async def results(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        """Of all of them, however much they take in memory."""
        found: list[PromptResult | None] = []
        while len(found) < len(job_ids):
            found += await self.result_page(job_ids[len(found) :])
        return found

    async def result_page(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        """Read with one script, which ends at a number of bytes."""
        result_keys = [self._place.result(job_id) for job_id in job_ids[:_PAGE_ENTRIES]]
        try:
            async with self._results.border():
                records: list[bytes | None] = await self._read_results_script(result_keys, [self._page_bytes])
        except QueueUnavailable:
            self._page_bytes = max(_LEAST_PAGE_BYTES, self._page_bytes // 2)
            raise
        self._page_bytes = min(_PAGE_BYTES, self._page_bytes * 9 // 8)
        return [await decoded(job_id, record) for job_id, record in zip(job_ids, records, strict=False)]

    async def wait(self, job_id: str, *, timeout_s: float | None) -> PromptResult:
        """See `ResultWaiter.wait`."""
        return await self._waiter.wait(job_id, timeout_s=timeout_s)

    async def cancel(self, job_ids: Sequence[str]) -> int:
        """Notes it for the workers, which read it with their heartbeats.

        Running jobs, and a few that wait, end sooner: all workers are told, as `app.control.revoke(...,
        terminate=True)` does.
        """
        have_ended = await self._have_ended(job_ids)
        going = [job_id for job_id, has_ended in zip(job_ids, have_ended, strict=True) if not has_ended]
        if not going:
            return 0
        async with self._broker.border():
            script_keys = [self._place.key(redis_keys.CANCELLED), *map(self._place.record, going)]
            cancelled, running = await self._writer.write(self._cancel_script, script_keys, going)
            told = running if len(going) > _TOLD_AT_ONCE else going
            if cancelled and told:
                channel = revoke_channel(self._place.key_prefix, self._place.broker.database)
                await self._broker.redis.publish(channel, revoke_message(told))
        return int(cancelled)

    async def _have_ended(self, job_ids: Sequence[str]) -> list[bool]:
        # The beginnings of the results: an answer may be megabytes.
        async with self._results.border(), self._results.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.getrange(self._place.result(job_id), 0, 40)
            return list(map(is_end, await pipe.execute()))

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Deletes results and records. A mark of cancellation stays until the id is submitted again, for a message that
        is still in the queue; so does one of a job that has ended and whose message may come back (forget.lua)."""
        if not job_ids:
            return
        ended = await self._have_ended(job_ids)
        async with self._broker.border():
            script_keys = [self._place.key(redis_keys.FORGOTTEN), self._place.key(redis_keys.LEASES)]
            script_keys += map(self._place.record, job_ids)
            args: list[str | int] = []
            for job_id, has_ended in zip(job_ids, ended, strict=True):
                args += job_id, int(has_ended)
            await self._forget_script(script_keys, args)
        async with self._results.border():
            await self._results.redis.delete(*map(self._place.result, job_ids))

    async def aclose(self) -> None:
        """Wakes whoever waits, with CancelledError."""
        await self._submissions.aclose()
        await self._streams.aclose()
        await self._waiter.aclose()
        await self._broker.aclose()
        if self._results is not self._broker:
            await self._results.aclose()


def _recorded_end(job_id: str, state: str | None) -> PromptResult | None:
    """How a job ended that was never run: its record says so for longer than its result is kept."""
    if state == "cancelled":
        return failure(job_id, "the job was cancelled", code="cancelled", status="cancelled")
    if state == "expired":
        return failure(job_id, "the job's `expires` passed before a worker took it", code="expired", status="expired")
    return None
