"""Rows into the queue, results out of it: a window of unfinished jobs at a time, whatever the file's size."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks import PromptQueue
from tasks.errors import GroupRolledBack, InvalidJob, JobFailed, QueueUnavailable, UnknownJob, UnknownModel
from tasks.results import JobError, PromptResult

from .beside import beside, either
from .errors import RunError
from .input.rows import SUBJECT, BadRow, Row
from .input.source import RowSource
from .output.output_file import OutputFile, answer_line, refusal_line
from .output.state import RunState
from .output.tally import ALIKE, Tally
from .shelf import Shelf

__all__ = ["Conveyor", "Window"]

CHUNK_ROWS = 250
CHUNK_BYTES = 1024 * 1024
CHECKPOINT_S = 0.5
FORGET_AT_ONCE = 500

OUTAGE_S = 60.0
"""How long submitting goes on trying while Redis is away or full."""

OUTAGE_RETRY_S = 1.0
LAST_RESULTS_S = 5.0

AUDIT_S = 5.0
"""How often Redis is asked whether it still knows the jobs that have been waiting for so long."""

SHOWN_REASON = 500
"""Characters of the provider's own words for why everything fails."""

COLLECT_PAUSE_S = 0.05
"""Results gather meanwhile: reading each as it comes (4 at a time under load) cost twice the CPU, here and in Redis."""


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be in Redis without its row of output."""

    jobs: int
    size_bytes: int = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A submitted row without an answer; its prompt is in Redis and not here."""

    line: int
    custom_id: str
    digest: str
    size_bytes: int


class Conveyor:
    """Moves the rows of a source through a queue into an output.

    An answer is deleted from Redis only after the disk has it, so a crash at any moment loses none. A job that Redis
    has lost (it crashed, or a replica took over that was behind) is submitted again.
    """

    def __init__(
        self,
        *,
        queue: PromptQueue,
        source: RowSource,
        input_path: Path,
        output: OutputFile,
        state: RunState,
        shelf: Shelf,
        tally: Tally,
        window: Window,
        stop: asyncio.Event,
        on_bad_row: Callable[[BadRow], None],
    ) -> None:
        self._queue = queue
        self._source = source
        self._input_path = input_path
        self._output = output
        self._state = state
        self._shelf = shelf
        self._tally = tally
        self._window = window
        self._stop = stop
        self._on_bad_row = on_bad_row
        self._waiting: dict[str, _Waiting] = {}
        self._waiting_bytes = 0
        self._written: list[str] = []
        self._moved = asyncio.Event()
        self._group = queue.new_group()
        self._group_begun = asyncio.Event()
        self._followed: asyncio.Queue[set[str]] = asyncio.Queue()
        self._not_audited: set[str] = set()  # followed, or being submitted
        self._submitted_again: set[str] = set()
        # Of a run that is new, Redis can't know any job.
        self._may_be_known = not state.is_new

    @property
    def queued(self) -> int:
        """Jobs that are submitted and have not ended."""
        return len(self._waiting)

    async def run(self, *, drain: Callable[[], Awaitable[None]]) -> None:
        """Until each row has its row of output; or, once `stop` is set, until `drain` has returned and what ended
        meanwhile is written."""
        try:
            await beside(self._move(drain), self._collect(), self._follow(), self._audit(), self._keep())
        finally:
            await self._checkpoint()

    async def _move(self, drain: Callable[[], Awaitable[None]]) -> None:
        await self._feed()
        await self._patiently(self._group.close)
        self._group_begun.set()
        await self._until(lambda: not self._waiting)
        if self._waiting:
            await drain()
            await self._take_last_results()

    # -- in

    async def _feed(self) -> None:
        while not self._stop.is_set():
            await self._until(self._has_room)
            rows = await asyncio.to_thread(self._source.take, max_rows=CHUNK_ROWS, max_bytes=CHUNK_BYTES)
            if not rows or self._stop.is_set():
                return
            for row in rows:
                if isinstance(row, BadRow):
                    self._refuse(row)
            await self._enqueue([row for row in rows if isinstance(row, Row)])

    def _has_room(self) -> bool:
        return (
            len(self._waiting) <= self._window.jobs - CHUNK_ROWS
            and self._waiting_bytes <= self._window.size_bytes - CHUNK_BYTES
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds or the run is to stop."""
        while not condition() and not self._stop.is_set():
            self._moved.clear()
            await either(self._moved.wait(), self._stop.wait())

    async def _enqueue(self, rows: list[Row]) -> None:
        jobs = {self._job_id(row): row for row in rows}
        new = await self._not_yet_known(jobs) if self._may_be_known else jobs
        self._not_audited |= jobs.keys()
        for job_id, row in jobs.items():
            self._expect(job_id, row)
        if new:
            await self._submit(new)
            self._group_begun.set()
            self._not_audited -= new.keys()
        if known := jobs.keys() - new.keys():
            self._followed.put_nowait(known)

    async def _submit(self, jobs: dict[str, Row]) -> None:
        requests = [_submission(row, job_id) for job_id, row in jobs.items()]
        try:
            await self._patiently(lambda: self._group.extend(requests))
        except InvalidJob:
            # One row is bad, or several; those that were stored already are skipped by their ids.
            for (job_id, row), request in zip(jobs.items(), requests, strict=True):
                await self._submit_one(job_id, row, partial(self._group.submit, **request))

    async def _submit_one(self, job_id: str, row: Row, submit: Callable[[], Awaitable[Any]]) -> None:
        try:
            await self._patiently(submit)
        except InvalidJob as error:
            self._forget_waiting(job_id)
            self._tally.withdraw(row)
            is_unknown = isinstance(error, UnknownModel)
            self._refuse(BadRow(row.line, row.custom_id, str(error), "not_found" if is_unknown else "bad_request"))

    async def _not_yet_known(self, jobs: dict[str, Row]) -> dict[str, Row]:
        """Leaves out the jobs that an interrupted run has submitted, unless they failed: those get another try."""
        known = await self._shelf.known(jobs)
        if not known:
            return jobs
        for job_id in known:
            if await self._queue.job(job_id).status() in ("failed", "cancelled", "expired"):
                await self._queue.forget(job_id)
                known = known - {job_id}
        return {job_id: row for job_id, row in jobs.items() if job_id not in known}

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> None:
        """Repeat a call while Redis is away or full. Only for calls that may be repeated."""
        deadline_s = asyncio.get_running_loop().time() + OUTAGE_S
        while True:
            try:
                await call()
            except QueueUnavailable as error:
                if asyncio.get_running_loop().time() > deadline_s or self._stop.is_set():
                    raise RunError(str(error)) from None
            else:
                return
            await either(asyncio.sleep(OUTAGE_RETRY_S), self._stop.wait())

    # -- out

    async def _collect(self) -> None:
        await self._group_begun.wait()
        while True:
            try:
                async for results in self._group.completed_batches():
                    await self._settle_or_cancel(results)
                    await asyncio.sleep(COLLECT_PAUSE_S)
            except (GroupRolledBack, UnknownJob):  # what Redis has left of it is read from its first
                await asyncio.sleep(OUTAGE_RETRY_S)
            except QueueUnavailable as error:
                raise RunError(str(error)) from None
            else:
                # A job that Redis has seen end twice was counted twice, and then another was not waited for.
                self._followed.put_nowait(set(self._waiting))
                return

    async def _settle_or_cancel(self, results: Iterable[PromptResult]) -> None:
        try:
            self._settle(results)
        except RunError:
            # Workers that are not ours would go on calling for the rest.
            with suppress(QueueUnavailable, UnknownJob):
                await self._group.cancel()
            raise

    async def _follow(self) -> None:
        """Wait for jobs that are not in this run's group: of an interrupted run, or submitted again."""
        while True:
            outcomes = [self._outcome(job_id) for job_id in await self._followed.get()]
            for outcome in asyncio.as_completed(outcomes):
                if (result := await outcome) is not None:
                    self._settle([result])

    async def _outcome(self, job_id: str) -> PromptResult | None:
        """None: Redis has lost the job for the first time, so that it is submitted again."""
        try:
            return await self._queue.job(job_id).result()
        except JobFailed as failure:
            return failure.result or _lost(job_id, failure)
        except UnknownJob as error:
            if job_id in self._submitted_again:
                return _lost(job_id, error)
            self._not_audited.discard(job_id)
            return None
        except QueueUnavailable as error:
            return _lost(job_id, error)

    # -- what Redis has lost

    async def _audit(self) -> None:
        waiting: set[str] = set()
        while True:
            before, waiting = waiting, self._waiting.keys() - self._not_audited
            if lost := await self._unknown(before & waiting):
                await self._submit_again(lost)
            await asyncio.sleep(AUDIT_S)

    async def _unknown(self, job_ids: set[str]) -> set[str]:
        try:
            unknown = job_ids - await self._shelf.known(job_ids)
        except RunError:
            return set()  # an outage; the next audit is soon
        return unknown & self._waiting.keys()  # the others have ended, and were deleted, meanwhile

    async def _submit_again(self, job_ids: set[str]) -> None:
        """Not into the group, which may be closed."""
        self._not_audited |= job_ids
        self._submitted_again |= job_ids
        pieces = self._source.again({self._waiting[job_id].line for job_id in job_ids}, max_rows=CHUNK_ROWS)
        while rows := await asyncio.to_thread(next, pieces, None):
            jobs = {job_id: row for row in rows if (job_id := self._job_id(row)) in job_ids}
            for job_id, row in jobs.items():
                await self._submit_one(job_id, row, partial(self._queue.submit, **_submission(row, job_id)))
            self._followed.put_nowait(set(jobs))

    def _settle(self, results: Iterable[PromptResult]) -> None:
        for result in results:
            waiting = self._forget_waiting(result.id)
            if waiting is not None:
                self._tally.end(result)
                self._write(result, waiting)
                if self._tally.all_failed_alike:
                    raise _hopeless(result)
        self._moved.set()

    def _write(self, result: PromptResult, waiting: _Waiting) -> None:
        row = answer_line(result, custom_id=waiting.custom_id, line=waiting.line, digest=waiting.digest)
        self._output.append(row)
        self._written.append(result.id)

    def _refuse(self, bad: BadRow) -> None:
        self._tally.refuse(bad)
        self._on_bad_row(bad)
        job_id = self._state.job_id(custom_id=f"line-{bad.line}", digest="")  # its own may be another row's
        self._output.append(refusal_line(bad, job_id=job_id, input_path=self._input_path))

    async def _take_last_results(self) -> None:
        """Wait for the results that are in Redis already, now that nobody works any more."""
        ended = await self._shelf.ended(self._waiting)
        try:
            async with asyncio.timeout(LAST_RESULTS_S):
                while ended & self._waiting.keys():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return  # they stay in Redis, and the run that continues takes them up

    # -- what is where

    def _job_id(self, row: Row) -> str:
        return self._state.job_id(custom_id=row.custom_id, digest=row.digest)

    def _expect(self, job_id: str, row: Row) -> None:
        self._waiting[job_id] = _Waiting(row.line, row.custom_id, row.digest, row.size_bytes)
        self._waiting_bytes += row.size_bytes
        self._tally.submit(row)

    def _forget_waiting(self, job_id: str) -> _Waiting | None:
        waiting = self._waiting.pop(job_id, None)
        if waiting is not None:
            self._waiting_bytes -= waiting.size_bytes
        return waiting

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        """Bring what is written to the disk, and only then delete it from Redis."""
        self._output.flush()
        written, self._written = self._written, []
        await asyncio.to_thread(self._output.sync)
        for start in range(0, len(written), FORGET_AT_ONCE):
            await self._forget(written[start : start + FORGET_AT_ONCE])

    async def _forget(self, job_ids: Sequence[str]) -> None:
        try:
            await self._queue.forget(*job_ids)
        except QueueUnavailable:
            return  # they expire by themselves; a run that continues looks at the output first


def _hopeless(result: PromptResult) -> RunError:
    assert result.error is not None
    error = result.error
    said = f" The provider said: {_printable(error.provider_body)}" if error.provider_body else ""
    return RunError(
        f"The first {ALIKE} rows have all failed alike, so the rest is not sent: {error.code}: {error.message}.{said}"
    )


def _printable(text: str) -> str:
    """One line of it, without what a terminal would act on."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:SHOWN_REASON]


def _submission(row: Row, job_id: str) -> dict[str, Any]:
    """The arguments of `submit`. All but model and subject go as `extra_body`: a provider's `metadata` is not ours."""
    subject = SUBJECT[row.kind]
    extra = {name: value for name, value in row.body.items() if name not in ("model", subject)}
    return {"id": job_id, "model": row.model, subject: row.body[subject], "extra_body": extra, **row.options}


def _lost(job_id: str, reason: Exception) -> PromptResult:
    message = f"The answer is lost ({reason}). Run the same command again to try this row once more."
    return PromptResult(id=job_id, status="failed", error=JobError(code="internal", message=message))
