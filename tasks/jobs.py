"""Handles on what was submitted: one job, or a group of them. They hold ids, not data, and can be made anew."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Literal, Self

from .errors import GroupRolledBack, IdTaken, InvalidJob, JobFailed, PromptmillError, StreamRestarted
from .results import PromptResult
from .store.group_reader import GroupReader, unknown_group
from .store.job_store import GroupProgress, Sighting, Store
from .store.patience import Patience
from .store.waiting import unknown_job
from .streams import Piece, StreamEvent
from .submission import submits
from .wire.request import NewJob
from .wire.vocabulary import OpenState, Status

__all__ = ["Group", "Job", "JobStatus"]

JobStatus = Literal["unknown"] | OpenState | Status

ROWS_A_CALL: Final = 250
"""Rows handed to Redis in one call. Rendering them takes some 5 ms, for which the event loop stands still."""
_PAGE: Final = 500

OpenStore = Callable[[], Awaitable[Store]]
Rows = Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]


class Job:
    """One prompt job. Made by `PromptQueue.submit`, or by `PromptQueue.job` from an id kept elsewhere."""

    def __init__(self, job_id: str, store: OpenStore, *, just_submitted: bool = False, streams: bool = False) -> None:
        """`streams`: whether it was submitted with `stream`."""
        self.id: Final = job_id
        self._store = store
        self._just_submitted = just_submitted
        self._streams = streams

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    async def status(self) -> JobStatus:
        """Where the job stands. "unknown" is not "queued": nobody has, or still has, a job of this id."""
        store = await self._store()
        return _status(await store.look(self.id))

    async def result(self, timeout_s: float | None = None) -> PromptResult:
        """The answer, as soon as there is one; None waits for as long as the job takes.

        Raises JobFailed, or one of its kinds, when the job has ended without an answer; ResultTimeout when it has
        not ended in time (it goes on); UnknownJob, also when Redis is wiped while waiting. A short outage of
        Redis is ridden out, a longer one raises QueueUnavailable.
        """
        result = await self._outcome(timeout_s)
        if not result.ok:
            raise JobFailed.of(result)
        return result

    async def _outcome(self, timeout_s: float | None) -> PromptResult:
        store = await self._store()
        # Right after submission there is nothing to see yet: the usual submit-then-wait saves a round trip.
        look_first, self._just_submitted = not self._just_submitted, False
        if look_first:
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            patience = Patience(store.outage_s if timeout_s is None else min(timeout_s, store.outage_s))
            sighting = await patience.until_answered(partial(store.look, self.id))
            if sighting.result is not None:
                return sighting.result
            if sighting.state is None:
                raise unknown_job(self.id)
            timeout_s = timeout_s and max(0.0, timeout_s - (loop.time() - started_s))
        return await store.wait(self.id, timeout_s=timeout_s)

    async def stream(self, after: int = 0, *, timeout_s: float | None = None) -> AsyncGenerator[Piece, None]:
        """The answer's text as it comes, piece by piece; together they are the result's `text`.

        For the worker to ask for a stream, say `submit(stream=True)`, or begin to read before the call begins; of an
        answer that comes otherwise the whole text is one piece. Any number of readers, in any process. `after` is how
        many characters you have already (a piece's `number`): reading goes on there.

        Raises what `result` does, `JobFailed` after what came; and StreamRestarted when text was read and the call that
        it came from broke off: throw it away and begin again, or read `events`, which say so without an error.
        """
        async with aclosing(await self._events(after, timeout_s)) as events:
            async for event in events:
                if event.kind == "text":
                    yield Piece.of(event)
                elif event.kind == "restarted":
                    raise StreamRestarted(
                        f"the call that answered job {self.id} broke off, and its answer begins anew: throw away what "
                        f"was read, and read job.stream(after={event.number}). job.events() tells it without an error.",
                        number=event.number,
                    )

    async def events(self, after: int = 0, *, timeout_s: float | None = None) -> AsyncGenerator[StreamEvent, None]:
        """The same as events, `restarted` among them (`StreamEvent`). Raises what `result` does."""
        async with aclosing(await self._events(after, timeout_s)) as events:
            async for event in events:
                yield event

    async def _events(self, after: int, timeout_s: float | None) -> AsyncGenerator[StreamEvent, None]:
        if isinstance(after, bool) or not isinstance(after, int) or after < 0:
            raise ValueError("after: must be a whole number, 0 or more, as a piece's `number` is")
        store = await self._store()
        is_new, self._just_submitted = self._just_submitted, False
        return store.stream(self.id, after=after, timeout_s=timeout_s, is_new=is_new, is_asked=self._streams)

    async def cancel(self) -> bool:
        """Ask that the job be cancelled, and a call to the provider that is under way be closed.

        True: it had not ended. It ends soon as "cancelled", unless its answer arrives first.
        """
        store = await self._store()
        return await store.cancel([self.id]) == 1


class Group:
    """Jobs that belong together, any number of them. Made by `submit_many`, `new_group` or `group`.

    Its jobs, counters and order of completion are kept in Redis, so any process can go on with it.
    """

    def __init__(self, group_id: str, store: OpenStore, new_job: Callable[..., NewJob]) -> None:
        self.id: Final = group_id
        self._store = store
        self._new_job = new_job

    def __repr__(self) -> str:
        return f"Group({self.id!r})"

    @submits
    async def submit(self, **job: Any) -> Job:
        """As `PromptQueue.submit`, into this group. A job whose id is known stays where it is."""
        store, new_job = await self._store(), self._new_job(**job)
        await store.submit(new_job, group=self.id)
        return Job(new_job.id, self._store, just_submitted=True, streams=new_job.streams)

    async def extend(self, rows: Rows) -> int:
        """Submit each row, a dict of `submit`'s arguments; how many rows there were.

        Holds a few hundred rows at a time. A bad row raises what `submit` would, with its number (from 0); the
        rows before it are submitted. Rows with ids can be given again after an error: known ones are skipped.
        """
        count = 0
        async with _OneAhead() as sending:
            async for batch in _batches(rows):
                jobs, fault = self._new_jobs(batch, count)  # while Redis takes the batch before
                await sending.start(self._submit_all(jobs, first=count))
                count += len(jobs)
                if fault is not None:
                    raise fault
        return count

    async def extend_by(self, rows: Sequence[Mapping[str, Any]], *, first: int) -> int:
        """Submit a batch of rows; `first` is the number of the first one, for the texts of errors."""
        jobs, fault = self._new_jobs(rows, first)
        await self._submit_all(jobs, first=first)
        if fault is not None:
            raise fault
        return len(jobs)

    async def _submit_all(self, jobs: Sequence[NewJob], *, first: int) -> None:
        store = await self._store()
        try:
            await store.submit_many(jobs, group=self.id)
        except IdTaken as error:
            await self._submit_all(jobs[: error.index], first=first)
            fault = IdTaken(f"row {first + error.index}: {error}", index=error.index)
            fault.add_note(f"Group {self.id}: the rows before it are submitted.")
            raise fault from None
        except PromptmillError as error:
            error.add_note(f"Group {self.id}: all {first} rows before these {len(jobs)} are submitted.")
            raise

    def _new_jobs(self, rows: Sequence[Mapping[str, Any]], first: int) -> tuple[list[NewJob], InvalidJob | None]:
        jobs: list[NewJob] = []
        for row in rows:
            try:
                jobs.append(self._new_job(**_arguments(row)))
            except InvalidJob as error:
                fault = type(error)(f"row {first + len(jobs)}: {error}")
                fault.add_note(f"Group {self.id}: the rows before it are submitted.")
                return jobs, fault
        return jobs, None

    async def close(self) -> int:
        """Say that no more jobs will come, so that `as_completed` can end; how many jobs there are."""
        return await (await self._store()).close_group(self.id)

    async def jobs(self) -> AsyncIterator[Job]:
        """The jobs, in the order of submission. Raises UnknownJob, GroupRolledBack, as `as_completed` does."""
        store = await self._store()
        async for page in self._pages(store, Patience(store.outage_s)):
            for job_id in page:
                yield Job(job_id, self._store)

    async def progress(self) -> GroupProgress:
        """Counts, from one read. Raises UnknownJob."""
        return await self._progress(await self._store())

    async def as_completed(self) -> AsyncIterator[PromptResult]:
        """Each job's result as the jobs end, failed ones too: look at `result.ok`; no job makes this raise.

        Begins with those that ended first, so another process can start over. Ends when the group is closed and
        all its jobs have ended. An outage of Redis is ridden out for `outage_s`, and what Redis has lost of its last
        seconds (a crash, a takeover by a replica that was behind) is neither missed nor delivered twice. Raises
        UnknownJob when the group is not, or no longer, known; QueueUnavailable after a longer outage; GroupRolledBack
        when more was lost than the reader remembers, the last 10,000 answers: then read again from the first, and
        skip the ids that you have.
        """
        async for batch in self.completed_batches():
            for result in batch:
                yield result

    async def completed_batches(self) -> AsyncIterator[list[PromptResult]]:
        """What `as_completed` yields, in lists as they are read from Redis."""
        async for results in GroupReader(self.id, await self._store()).pages():
            yield results

    async def cancel(self) -> int:
        """Cancel all jobs that have not ended; how many there were. Jobs that are submitted later go on."""
        store, cancelled = await self._store(), 0
        async for page in self._pages(store, Patience(0.0)):
            cancelled += await store.cancel(page)
        return cancelled

    async def _pages(self, store: Store, patience: Patience) -> AsyncIterator[list[str]]:
        """Ids in the order of submission. Raises GroupRolledBack where Redis has lost what was read."""
        await patience.until_answered(partial(self._progress, store))
        start, last = 0, ""
        while True:
            # With the last one again: if another id stands there, the list is not the one that was read.
            from_ = max(0, start - 1)
            page = await patience.until_answered(
                partial(store.group_jobs, self.id, start=from_, count=_PAGE + start - from_)
            )
            if start and page[:1] != [last]:
                raise GroupRolledBack(
                    f"Redis has lost the last jobs of group {self.id}, as after a takeover by a replica that was "
                    "behind. Begin again with the first, and skip the ids that you have."
                )
            if not (page := page[start - from_ :]):
                return
            yield page
            start, last = start + len(page), page[-1]

    async def _progress(self, store: Store) -> GroupProgress:
        if (progress := await store.group_progress(self.id)) is None:
            raise unknown_group(self.id)
        return progress


class _OneAhead:
    """Runs one call while the next is prepared; what it raises comes out of the next `start`, or at the end."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self, call: Coroutine[Any, Any, None]) -> None:
        if self._task is not None:
            try:
                await self._task
            except BaseException:
                call.close()
                raise
        self._task = asyncio.create_task(call)
        await asyncio.sleep(0)  # it writes to the socket now, not when the next batch is ready

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await self._task


def _status(sighting: Sighting) -> JobStatus:
    if sighting.result is not None:
        return sighting.result.status
    match sighting.state:
        case None:
            return "unknown"
        case "succeeded" | "failed" | "cancelled" | "expired" | "running" | "queued" as known:
            return known
        case _:  # a newer worker's word for waiting: parked, waiting for a limit
            return "queued"


def _arguments(row: object) -> dict[str, Any]:
    if isinstance(row, Mapping) and all(isinstance(name, str) for name in row):
        return dict(row)
    raise InvalidJob("must be an object with the arguments of submit, as in {'model': ..., 'messages': [...]}")


async def _batches(rows: Rows) -> AsyncIterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    async for row in _each(rows):
        batch.append(row)
        if len(batch) == ROWS_A_CALL:
            yield batch
            batch = []
    if batch:
        yield batch


async def _each(rows: Rows) -> AsyncIterator[Mapping[str, Any]]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row
