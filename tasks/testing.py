"""For the tests of code that submits prompts: a queue without Redis and workers, whose answers the test gives.

::

    queue = InMemoryQueue(answer=lambda body: f"You said: {body['messages'][-1]['content']}")
    assert greet(queue.sync) == "You said: Hello"
    assert queue.submitted[0]["body"]["model"] == "gpt-4o-mini"
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from .client import PromptQueue
from .errors import InvalidJob, JobFailed, ResultTimeout, UnknownJob
from .redis.cancellation import stop
from .results import Attempt, JobError, PromptResult, Usage
from .store.job_store import GroupEntry, GroupPage, GroupProgress, Sighting
from .store.waiting import unknown_job
from .streams import StreamEvent
from .wire.kinds import KINDS
from .wire.record import failure
from .wire.request import DEFAULT_MAX_JOB_BYTES, NewJob, check_model, id_taken
from .wire.texts import answer_with, text_of
from .wire.usage import read_usage, tier_named
from .wire.vectors import inputs_of
from .wire.vocabulary import Status

__all__ = ["Answer", "InMemoryQueue"]

Answer = str | list[Any] | dict[str, Any] | Exception
Pieces = Iterator[str] | AsyncIterator[str]

_ENDS: Final[dict[str, Status]] = {"expired": "expired", "cancelled": "cancelled"}
"""How a job ends that fails with a code which is no failure."""


class InMemoryQueue(PromptQueue):
    """`PromptQueue` with the same methods, checks and errors; jobs run at once in this process.

    `answer` gets a job's body and returns, or is a coroutine function that returns, the answer's text, a list of
    vectors for an embedding (which has vectors by its texts where a text is returned), the provider's whole response
    as a dict, whose `usage` is then the result's, or an exception, which may be raised as well: a `JobFailed` of any
    kind fails the job with its code, others count as "internal". A generator, async or not, yields the text's pieces,
    which `job.stream()` yields as they come. `models` are those that may be asked; None is any.
    `submitted` lists what arrived. `delay_s` and `deadline_s` are checked, but time does not pass in here. Nothing of
    what workers do to an answer is done: it has no price and no route, and is neither held to its `schema` nor cached.
    Its tier is the one that the response names, or else the body's `service_tier`.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Answer | Pieces | Awaitable[Answer]] = lambda body: "An answer.",
        *,
        models: Iterable[str] | None = None,
        max_job_bytes: int = DEFAULT_MAX_JOB_BYTES,
    ) -> None:
        store = _MemoryStore(answer, None if models is None else frozenset(models))
        self.submitted = store.submitted
        self._setup("in memory", lambda: store, max_job_bytes)


@dataclass(slots=True)
class _Record:
    job: NewJob
    group: str | None
    state: str = "queued"
    text: str = ""
    """What has come of an answer in pieces."""
    result: PromptResult | None = None


@dataclass(slots=True)
class _GroupRecord:
    job_ids: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    closed: bool = False


class _MemoryStore:
    """See `Store`. May be used from several event loops, each in its thread (`queue.sync` is one)."""

    outage_s = 0.0

    def __init__(
        self, answer: Callable[[dict[str, Any]], Answer | Pieces | Awaitable[Answer]], models: frozenset[str] | None
    ) -> None:
        self.submitted: list[dict[str, Any]] = []
        self._answer = answer
        self._models = models
        self._records: dict[str, _Record] = {}
        self._groups: dict[str, _GroupRecord] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._watchers: list[asyncio.Future[None]] = []

    # -- submission

    async def submit(self, job: NewJob, *, group: str | None) -> None:
        """Starts it too."""
        await self._submit([job], group)

    async def submit_many(self, jobs: Sequence[NewJob], *, group: str) -> None:
        """Starts them too."""
        await self._submit(jobs, group)

    async def _submit(self, jobs: Sequence[NewJob], group: str | None) -> None:
        owners: dict[str, str] = {}
        for index, job in enumerate(jobs):
            check_model(job, self._models)
            record = self._records.get(job.id)
            if owners.setdefault(job.id, record.job.tenant if record else job.tenant) != job.tenant:
                raise id_taken(job.id, index=index)
        fresh = {job.id: job for job in reversed(jobs) if job.id not in self._records}
        if group is not None:
            self._enter(group, list(reversed(fresh)))
        for job in reversed(fresh.values()):
            self._records[job.id] = _Record(job, group)
            self.submitted.append(_as_submitted(job))
            self._running[job.id] = asyncio.create_task(self._run(job))

    def _enter(self, group: str, job_ids: list[str]) -> None:
        record = self._groups.setdefault(group, _GroupRecord())
        if record.closed and job_ids:
            raise InvalidJob(f"group: {group} is closed; open another one with queue.new_group()")
        record.job_ids += job_ids

    # -- the job's life

    async def _run(self, job: NewJob) -> None:
        record = self._records[job.id]
        record.state = "running"
        started_s = time.monotonic()
        try:
            answer = await self._ask(record, json.loads(job.body))
        finally:
            self._running.pop(job.id, None)
        self._end(record, _result(job, answer, duration_s=time.monotonic() - started_s))

    async def _ask(self, record: _Record, body: dict[str, Any]) -> Answer:
        try:
            answer = self._answer(body)
            if isinstance(answer, AsyncIterator):
                async for piece in answer:
                    self._add(record, piece)
                return record.text
            if isinstance(answer, Iterator):
                for piece in answer:
                    self._add(record, piece)
                return record.text
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:  # noqa: BLE001 - the test's way to say how the job fails
            return error

    def _add(self, record: _Record, piece: str) -> None:
        record.text += piece
        self._wake()

    def _end(self, record: _Record, result: PromptResult) -> None:
        if record.result is not None:
            return
        record.result, record.state = result, result.status
        if record.group is not None:
            group = self._groups[record.group]
            group.ended.append(record.job.id)  # before it is counted: a reader in another thread believes the counts
            group.counts[result.status] += 1
        self._wake()

    def _wake(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.get_loop().call_soon_threadsafe(_finish, watcher)

    @contextmanager
    def _watching(self) -> Iterator[asyncio.Future[None]]:
        """Done at the next change from now on."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    # -- jobs

    async def look(self, job_id: str) -> Sighting:
        """What is known of it."""
        record = self._records.get(job_id)
        return Sighting(None, None) if record is None else Sighting(record.result, record.state)

    async def result_page(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        """All of them: they are in memory already."""
        return [(await self.look(job_id)).result for job_id in job_ids]

    async def wait(self, job_id: str, *, timeout_s: float | None) -> PromptResult:
        """Until the job has ended."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._wait(job_id)
        except TimeoutError:
            raise ResultTimeout(f"job {job_id} has not ended within {timeout_s:g} s; it goes on") from None

    async def _wait(self, job_id: str) -> PromptResult:
        while True:
            with self._watching() as change:
                sighting = await self.look(job_id)
                if sighting.result is not None:
                    return sighting.result
                if sighting.state is None:
                    raise unknown_job(job_id)
                await change

    async def stream(
        self, job_id: str, *, after: int, timeout_s: float | None, is_new: bool, is_asked: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        """Nothing in here breaks off, so nothing begins anew."""
        if after == 0:
            yield StreamEvent("started", 0)
        place, ends_at = after, None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._watching() as change:
                if (record := self._records.get(job_id)) is None:
                    raise unknown_job(job_id)
                result, text = record.result, record.text[place:]
                if result is None and not text:
                    await asyncio.wait([change], timeout=None if ends_at is None else ends_at - time.monotonic())
                    if not change.done():
                        raise ResultTimeout(f"job {job_id} has not ended within {timeout_s:g} s; it goes on")
            if result is not None:
                break
            if text:
                place += len(text)
                yield StreamEvent("text", place, text)
        if not result.ok:
            raise JobFailed.of(result)
        if rest := (result.text or "")[place:]:
            place += len(rest)
            yield StreamEvent("text", place, rest)
        if result.usage != Usage():
            yield StreamEvent("usage", place, usage=result.usage)
        yield StreamEvent("end", place)

    async def cancel(self, job_ids: Sequence[str]) -> int:
        """Ends those that have not ended."""
        going = [self._records[job_id] for job_id in job_ids if job_id in self._records]
        going = [record for record in going if record.result is None]
        for record in going:
            self._end(record, failure(record.job.id, "the job was cancelled", code="cancelled", status="cancelled"))
            if (task := self._running.get(record.job.id)) is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)
        return len(going)

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Drops their records."""
        for job_id in job_ids:
            self._records.pop(job_id, None)
        self._wake()

    # -- groups

    async def close_group(self, group_id: str) -> int:
        """No more jobs."""
        record = self._groups.setdefault(group_id, _GroupRecord())
        record.closed = True
        self._wake()
        return len(record.job_ids)

    async def group_progress(self, group_id: str) -> GroupProgress | None:
        """Its counters."""
        record = self._groups.get(group_id)
        return None if record is None else _progress(record)

    async def group_jobs(self, group_id: str, *, start: int, count: int) -> list[str]:
        """Ids in the order of submission."""
        return self._group(group_id).job_ids[start : start + count]

    async def group_ended(self, group_id: str, *, after: GroupEntry | None, wait_s: float) -> GroupPage | None:
        """An entry's position is how many ended up to it."""
        record = self._groups.get(group_id)
        if record is None:
            return None
        start = int(after.position) if after else 0
        with self._watching() as change:
            if wait_s and len(record.ended) <= start:
                await asyncio.wait([change], timeout=wait_s)
        progress = _progress(record)
        ended = record.ended[start:]
        return GroupPage(progress, [GroupEntry(f"{n}", job_id) for n, job_id in enumerate(ended, start=start + 1)])

    async def group_has(self, group_id: str, entries: Sequence[GroupEntry]) -> list[bool]:
        """Memory loses none."""
        return [True] * len(entries)

    def _group(self, group_id: str) -> _GroupRecord:
        if (record := self._groups.get(group_id)) is None:
            raise UnknownJob(f"no group {group_id} is known")
        return record

    async def aclose(self) -> None:
        """Stops the answers that this event loop was still waiting for."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._running.values() if task.get_loop() is loop]
        await stop(*tasks)


def _progress(record: _GroupRecord) -> GroupProgress:
    submitted = len(record.job_ids)
    return GroupProgress(total=submitted if record.closed else None, submitted=submitted, **record.counts)


def _finish(watcher: asyncio.Future[None]) -> None:
    if not watcher.done():
        watcher.set_result(None)


def _as_submitted(job: NewJob) -> dict[str, Any]:
    content = json.loads(job.text(submitted_at=time.time()))
    content["promptmill"].pop("vectors", None)  # the client's word to the workers, not the caller's
    return {"id": job.id, "kind": job.kind, **content}


def _result(job: NewJob, answer: Answer, *, duration_s: float) -> PromptResult:
    metadata = json.loads(f"{{{job.options[1:]}}}").get("metadata")
    if isinstance(answer, Exception):
        return _failed(job, answer, metadata, duration_s=duration_s)
    response = answer if isinstance(answer, dict) else _response(job, answer)
    return PromptResult(
        id=job.id,
        status="succeeded",
        text=text_of(job.kind, response),
        response=response,
        model=job.model,
        answered_by=f"memory/{job.model}",
        tier=tier_named(response.get("service_tier") or json.loads(job.body).get("service_tier")),
        usage=read_usage(response, has_output=KINDS[job.kind].writes) or Usage(),
        attempts=1,
        duration_s=duration_s,
        queued_s=0.0,
        metadata=metadata,
    )


def _failed(job: NewJob, error: Exception, metadata: Any, *, duration_s: float) -> PromptResult:
    """As after one call that failed so."""
    code = error.code if isinstance(error, JobFailed) else "internal"
    attempt = Attempt(
        code, str(error), answered_by=f"memory/{job.model}", at=time.time() - duration_s, duration_s=duration_s
    )
    return PromptResult(
        id=job.id,
        status=_ENDS.get(code, "failed"),
        model=job.model,
        attempts=1,
        queued_s=0.0,
        duration_s=duration_s,
        metadata=metadata,
        error=JobError(code, str(error), attempts=(attempt,)),
        failed_attempts=(attempt,),
    )


def _response(job: NewJob, answer: str | list[Any]) -> dict[str, Any]:
    if job.kind == "embed":
        return _embeddings(job, answer)
    return answer_with(job.kind, str(answer), id=job.id, model=job.model)


def _embeddings(job: NewJob, answer: str | list[Any]) -> dict[str, Any]:
    """The vectors that the test gave, or some that depend on the text alone."""
    vectors = answer if isinstance(answer, list) else list(map(_vector, inputs_of(json.loads(job.body))))
    rows = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    return {"object": "list", "data": rows, "model": job.model}


def _vector(value: Any) -> list[float]:
    return [byte / 255 for byte in sha256(json.dumps(value).encode()).digest()[:8]]
