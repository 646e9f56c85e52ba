"""Outcomes of the loop's jobs, gathered there and written by a thread, many at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias

from celery.exceptions import BackendStoreError
from redis.exceptions import RedisError

from ..redis.patience import RETRY_S, will_pass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .entry import Entry

__all__ = ["BATCH_SIZE", "HUGE_BYTES", "BatchWriter", "Writer"]

logger = logging.getLogger("promptmill.results")

BATCH_SIZE = 500
"""Results in one script call at most: about 1 MB of answers, a few milliseconds of Redis's time."""

SMALL_BATCH = 8

BUSY_RATE_PER_S = 1_000
LINGER_S = 0.004
"""Above so many results a second, a batch waits so long for company; below, it would wait for nobody."""

BATCH_BYTES = 2 * 1024 * 1024
"""And a batch ends when it has so many: what comes later must not wait for megabytes."""

HUGE_BYTES = 256 * 1024
"""A record from this size on is compressed aside and sent beside the batches, so that small ones overtake it."""


class Store(Protocol):
    """Writes outcomes, blocking: the backend. What it returns is to be tried again. Raises redis's errors."""

    def write(self, entries: Iterable[Entry]) -> list[Entry]: ...


Waiting: TypeAlias = "tuple[Entry, asyncio.Future[None]]"


def _never_stored(entry: Entry, exc: Exception) -> BackendStoreError:
    """What becomes of a result that Redis refuses for good: say, because its key holds something else."""
    text = f"Redis refuses this job's result for good ({exc!r}); look at the key {entry.key}"
    return BackendStoreError(text, task_id=entry.job_id)


class BatchWriter:
    """Gathers outcomes on the loop and has a thread write them, one batch at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pending: deque[Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="promptmill-results")
        self._flushing: asyncio.Task[None] | None = None
        self._closing = False
        self._rate_per_s = 0.0

    def put(self, entry: Entry, stored: asyncio.Future[None] | None = None) -> asyncio.Future[None]:
        """Add an outcome to the next batch. The future is done when Redis has it."""
        if stored is None:
            stored = asyncio.get_running_loop().create_future()
        self._pending.append((entry, stored))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return stored

    async def aclose(self) -> None:
        """Write what is left, or give up on it if Redis does not take it now."""
        self._closing = True
        if self._flushing is not None:
            await self._flushing
        self._thread.shutdown()

    async def _flush(self) -> None:
        try:
            while self._pending:
                if self._rate_per_s > BUSY_RATE_PER_S and not self._closing:
                    await asyncio.sleep(LINGER_S)
                started = time.monotonic()
                batch = self._next_batch()
                await self._store(batch)
                self._measure(len(batch), time.monotonic() - started)
        finally:
            self._flushing = None

    async def _store(self, batch: list[Waiting]) -> None:
        try:
            await self._write([entry for entry, _ in batch])
        except Exception as exc:  # noqa: BLE001 - whatever it is, a job waits for its result to be stored
            if len(batch) > 1:
                # One result that Redis will never take must not keep the others: find it.
                for waiting in batch:
                    await self._store([waiting])
                return
            entry, stored = batch[0]
            if not stored.done():
                stored.set_exception(_never_stored(entry, exc))
        else:
            for _, stored in batch:
                if not stored.done():
                    stored.set_result(None)

    def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        room, n = BATCH_BYTES, self._batch_size()
        while self._pending and len(batch) < n and room > 0:
            batch.append(self._pending.popleft())
            room -= batch[-1][0].size
        return batch

    def _batch_size(self) -> int:
        """Half of what waits. One batch for all would have their places filled anew at one moment, and so keep jobs
        of equal length in step: all ask for the processor at once, and then all wait."""
        return min(max(SMALL_BATCH, len(self._pending) // 2), BATCH_SIZE)

    def _measure(self, n: int, took_s: float) -> None:
        lingered_s = LINGER_S if self._rate_per_s > BUSY_RATE_PER_S else 0.0
        self._rate_per_s += 0.2 * (n / (took_s + lingered_s) - self._rate_per_s)

    async def _write(self, entries: list[Entry]) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                early = await loop.run_in_executor(self._thread, self.store.write, entries)
                if not early or self._closing:
                    return
                entries = early
            except (RedisError, OSError) as exc:
                failures += 1
                if failures in {1, 10} or failures % 60 == 0:
                    logger.warning("Redis does not take results (%r); %d wait, trying again", exc, len(entries))
                if self._closing or not will_pass(exc):
                    raise
            await asyncio.sleep(RETRY_S)


class Writer:
    """Writes outcomes in batches, and huge ones beside them."""

    def __init__(self, store: Store) -> None:
        self._batches, self._huge = BatchWriter(store), BatchWriter(store)
        self._compressor = ThreadPoolExecutor(1, thread_name_prefix="promptmill-compressor")
        self._packing: set[asyncio.Task[None]] = set()

    def put(self, entry: Entry) -> asyncio.Future[None]:
        """Store an outcome. The future is done when Redis has it."""
        if entry.size < HUGE_BYTES:
            return self._batches.put(entry)
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        packing = asyncio.create_task(self._put_huge(entry, stored))
        self._packing.add(packing)
        packing.add_done_callback(self._packing.discard)
        return stored

    async def _put_huge(self, entry: Entry, stored: asyncio.Future[None]) -> None:
        packed = await asyncio.get_running_loop().run_in_executor(self._compressor, entry.packed)
        if entry.result is not None and isinstance(packed.record, bytes):
            entry.result.keep_record(packed.record)
        self._huge.put(packed, stored)

    async def aclose(self) -> None:
        """Write what is left, or give up on it if Redis does not take it now."""
        if self._packing:
            await asyncio.wait(self._packing)
        await self._batches.aclose()
        await self._huge.aclose()
        self._compressor.shutdown()
