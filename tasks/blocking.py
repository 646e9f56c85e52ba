"""`queue.sync`: the async queue, called from threads. One event loop in one background thread does the work.

Nothing is written twice: each blocking method sends the async method of the same name to that loop and waits.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from .embedding import embedding_rows_sync
from .jobs import ROWS_A_CALL
from .results import PromptResult
from .store.job_store import GroupProgress
from .streams import Piece, StreamEvent
from .submission import submits

if TYPE_CHECKING:
    from .client import PromptQueue
    from .jobs import Group, Job, JobStatus

__all__ = ["SyncGroup", "SyncJob", "SyncQueue"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread, started at the first use and again after a fork or `close`."""

    def __init__(self) -> None:
        self._reset()
        _loop_threads.add(self)

    def _reset(self) -> None:
        """A forked child has the parent's objects but not its thread: begin anew, and touch nothing of it."""
        self._starting = threading.Lock()
        self._inherited = getattr(self, "_loop", None)  # kept: collecting it would warn of an unclosed loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the loop, and wait for it. An interrupt (Ctrl-C) cancels it."""
        if _is_event_loop_thread():
            call.close()
            raise RuntimeError("queue.sync was called on an event loop's thread; use `await queue....` there")
        future = asyncio.run_coroutine_threadsafe(call, self._running_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run_loop, args=[self._loop], name="promptmill", daemon=True)
                self._thread.start()
            return self._loop

    @property
    def running(self) -> bool:
        return self._loop is not None

    def close(self) -> None:
        """Stop the loop and its thread."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


_loop_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()


def _after_fork() -> None:
    for loop_thread in _loop_threads:
        loop_thread._reset()


os.register_at_fork(after_in_child=_after_fork)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _is_event_loop_thread() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class SyncJob:
    """`Job`, blocking."""

    def __init__(self, job: Job, thread: LoopThread) -> None:
        self._job = job
        self._thread = thread
        self.id = job.id

    def __repr__(self) -> str:
        return f"SyncJob({self.id!r})"

    def status(self) -> JobStatus:
        """See `Job.status`."""
        return self._thread.run(self._job.status())

    def result(self, timeout_s: float | None = None) -> PromptResult:
        """See `Job.result`."""
        return self._thread.run(self._job.result(timeout_s))

    def stream(self, after: int = 0, *, timeout_s: float | None = None) -> Iterator[Piece]:
        """See `Job.stream`."""
        return _iterate(self._job.stream(after, timeout_s=timeout_s), self._thread)

    def events(self, after: int = 0, *, timeout_s: float | None = None) -> Iterator[StreamEvent]:
        """See `Job.events`."""
        return _iterate(self._job.events(after, timeout_s=timeout_s), self._thread)

    def cancel(self) -> bool:
        """See `Job.cancel`."""
        return self._thread.run(self._job.cancel())


class SyncGroup:
    """`Group`, blocking."""

    def __init__(self, group: Group, thread: LoopThread) -> None:
        self._group = group
        self._thread = thread
        self.id = group.id

    def __repr__(self) -> str:
        return f"SyncGroup({self.id!r})"

    @submits
    def submit(self, **job: Any) -> SyncJob:
        """See `Group.submit`."""
        return SyncJob(self._thread.run(self._group.submit(**job)), self._thread)

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """See `Group.extend`. `rows` is read in the caller's thread: it may be a database cursor."""
        count, remaining = 0, iter(rows)
        while batch := list(islice(remaining, ROWS_A_CALL)):
            count += self._thread.run(self._group.extend_by(batch, first=count))
        return count

    def close(self) -> int:
        """See `Group.close`."""
        return self._thread.run(self._group.close())

    def jobs(self) -> Iterator[SyncJob]:
        """See `Group.jobs`."""
        for job in _iterate(self._group.jobs(), self._thread):
            yield SyncJob(job, self._thread)

    def progress(self) -> GroupProgress:
        """See `Group.progress`."""
        return self._thread.run(self._group.progress())

    def as_completed(self) -> Iterator[PromptResult]:
        """See `Group.as_completed`."""
        for batch in _iterate(self._group.completed_batches(), self._thread):
            yield from batch

    def cancel(self) -> int:
        """See `Group.cancel`."""
        return self._thread.run(self._group.cancel())


class SyncQueue:
    """`PromptQueue`, blocking. Safe to use from many threads, and after a fork."""

    def __init__(self, queue: PromptQueue) -> None:
        self._queue = queue
        self._thread = LoopThread()

    def __repr__(self) -> str:
        return f"{self._queue!r}.sync"

    @submits
    def submit(self, **job: Any) -> SyncJob:
        """See `PromptQueue.submit`."""
        return SyncJob(self._thread.run(self._queue.submit(**job)), self._thread)

    def respond(self, *, model: str, input: str | Sequence[Any], **job: Any) -> SyncJob:  # noqa: A002
        """See `PromptQueue.respond`."""
        return self.submit(kind="respond", model=model, input=input, **job)

    def complete(self, *, model: str, prompt: str | Sequence[Any], **job: Any) -> SyncJob:
        """See `PromptQueue.complete`."""
        return self.submit(kind="complete", model=model, prompt=prompt, **job)

    def moderate(self, *, model: str, input: str | Sequence[Any], **job: Any) -> SyncJob:  # noqa: A002
        """See `PromptQueue.moderate`."""
        return self.submit(kind="moderate", model=model, input=input, **job)

    def submit_many(self, rows: Iterable[Mapping[str, Any]]) -> SyncGroup:
        """See `PromptQueue.submit_many`. `rows` is read in the caller's thread: it may be a database cursor."""
        group = self.new_group()
        try:
            group.extend(rows)
        finally:
            group.close()
        return group

    def embed_many(self, texts: Iterable[Any], *, model: str, texts_per_job: int = 1, **job: Any) -> SyncGroup:
        """See `PromptQueue.embed_many`. `texts` is read in the caller's thread."""
        return self.submit_many(embedding_rows_sync(texts, texts_per_job=texts_per_job, model=model, **job))

    def new_group(self, id: str | None = None) -> SyncGroup:  # noqa: A002 - the name that the interface promises
        """See `PromptQueue.new_group`."""
        return SyncGroup(self._queue.new_group(id), self._thread)

    def group(self, id: str) -> SyncGroup:  # noqa: A002 - the name that the interface promises
        """See `PromptQueue.group`."""
        return SyncGroup(self._queue.group(id), self._thread)

    def job(self, id: str) -> SyncJob:  # noqa: A002 - the name that the interface promises
        """See `PromptQueue.job`."""
        return SyncJob(self._queue.job(id), self._thread)

    def forget(self, *ids: str) -> None:
        """See `PromptQueue.forget`."""
        self._thread.run(self._queue.forget(*ids))

    def close(self) -> None:
        """Close the connections and the thread. The next call opens them again."""
        if self._thread.running:
            self._thread.run(self._queue._close_store())
            self._thread.close()

    def __enter__(self) -> SyncQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _iterate(items: AsyncIterator[T], thread: LoopThread) -> Iterator[T]:
    end = object()
    try:
        while (item := thread.run(_next(items, end))) is not end:
            yield item  # type: ignore[misc] # not `end`, hence T
    finally:
        if (aclose := getattr(items, "aclose", None)) is not None:
            thread.run(aclose())


async def _next(items: AsyncIterator[T], end: object) -> T | object:
    return await anext(items, end)
