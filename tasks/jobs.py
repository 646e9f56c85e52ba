"""Handles on what was submitted: one job, or a group of them. They hold ids, not data, and can be made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self

from .errors import InvalidJob, JobFailed, PromptmillError, UnknownJob
from .outcome import lost
from .request import NewJob
from .results import PromptResult
from .store import GroupProgress, Sighting, Store
from .waiting import unknown_job

__all__ = ["Group", "Job", "JobStatus"]

JobStatus = Literal["unknown", "queued", "running", "succeeded", "failed", "cancelled", "expired"]

ROWS_A_CALL: Final = 250
"""Rows handed to Redis in one call. Rendering them takes some 5 ms, for which the event loop stands still."""
_PAGE: Final = 500
_OPEN_GROUP_WAIT_S: Final = 0.25
"""Nothing wakes a reader when a group is closed after its last job has ended; it looks this often."""
_CLOSED_GROUP_WAIT_S: Final = 2.0
_LATE_RESULT_TRIES: Final = 10
_LATE_RESULT_S: Final = 0.05

OpenStore = Callable[[], Awaitable[Store]]
Rows = Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]


class Job:
    """One prompt job. Made by `PromptQueue.submit`, or by `PromptQueue.job` from an id kept elsewhere."""

    def __init__(self, job_id: str, store: OpenStore, *, just_submitted: bool = False) -> None:
        self.id: Final = job_id
        self._store = store
        self._just_submitted = just_submitted

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
            sighting = await store.look(self.id)
            if sighting.result is not None:
                return sighting.result
            if sighting.state is None:
                raise unknown_job(self.id)
        return await store.wait(self.id, timeout_s=timeout_s)

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

    async def submit(self, **job: Any) -> Job:
        """As `PromptQueue.submit`, into this group. A job whose id is known stays where it is."""
        store, new_job = await self._store(), self._new_job(**job)
        await store.submit(new_job, group=self.id)
        return Job(new_job.id, self._store, just_submitted=True)

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
        """The jobs, in the order of submission."""
        async for page in self._pages():
            for job_id in page:
                yield Job(job_id, self._store)

    async def progress(self) -> GroupProgress:
        """Counts, from one read. Raises UnknownJob."""
        return await self._progress(await self._store())

    async def as_completed(self) -> AsyncIterator[PromptResult]:
        """Each job's result as the jobs end, failed ones too: look at `result.ok`; no job makes this raise.

        Begins with those that ended first, so another process can start over. Ends when the group is closed and
        all its jobs have ended. Raises UnknownJob when the group is not, or no longer, known.
        """
        async for batch in self.completed_batches():
            for result in batch:
                yield result

    async def completed_batches(self) -> AsyncIterator[list[PromptResult]]:
        """What `as_completed` yields, in lists as they are read from Redis."""
        store = await self._store()
        position, seen, progress = "", 0, await self._progress(store)
        while progress.total is None or seen < progress.total:
            wait_s = _OPEN_GROUP_WAIT_S if progress.total is None else _CLOSED_GROUP_WAIT_S
            entries = await store.group_ended(self.id, after=position, wait_s=wait_s)
            if entries:
                position, seen = entries[-1].position, seen + len(entries)
                yield await _results(store, [entry.job_id for entry in entries])
            if progress.total is None or not entries:
                progress = await self._progress(store, at_least=seen)

    async def cancel(self) -> int:
        """Cancel all jobs that have not ended; how many there were. Jobs that are submitted later go on."""
        store, cancelled = await self._store(), 0
        async for page in self._pages():
            cancelled += await store.cancel(page)
        return cancelled

    async def _pages(self) -> AsyncIterator[list[str]]:
        store = await self._store()
        await self._progress(store)
        start = 0
        while page := await store.group_jobs(self.id, start=start, count=_PAGE):
            yield page
            start += len(page)

    async def _progress(self, store: Store, *, at_least: int = 0) -> GroupProgress:
        progress = await store.group_progress(self.id)
        # Fewer ended than were already read: the counters, and with them the group, were deleted meanwhile.
        if progress is None or progress.ended < at_least:
            raise UnknownJob(f"no group {self.id} is known: the id is wrong, it has expired, or Redis was wiped")
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


async def _results(store: Store, job_ids: Sequence[str]) -> list[PromptResult]:
    """The results of jobs that have ended. One that is not there at first may be on its way."""
    found: dict[str, PromptResult] = {}
    for _ in range(_LATE_RESULT_TRIES):
        missing = [job_id for job_id in job_ids if job_id not in found]
        results = await store.results(missing)
        found |= {job_id: result for job_id, result in zip(missing, results, strict=True) if result is not None}
        if len(found) == len(set(job_ids)):
            break
        await asyncio.sleep(_LATE_RESULT_S)
    return [found.get(job_id) or lost(job_id) for job_id in job_ids]


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
