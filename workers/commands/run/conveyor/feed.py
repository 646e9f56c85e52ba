"""Rows into the queue, a window of unfinished jobs at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tasks import PromptQueue

from ..beside import either
from ..input.rows import BadRow, Row
from ..input.source import RowSource
from .ledger import Ledger
from .losses import Losses
from .shelf import Shelf
from .submitting import Submitter

__all__ = ["Feed", "Window"]

CHUNK_ROWS = 250
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be in Redis without its row of output."""

    jobs: int
    size_bytes: int = 128 * 1024 * 1024


class Feed:
    """Takes rows from the source and submits them while the window has room."""

    def __init__(
        self,
        *,
        queue: PromptQueue,
        source: RowSource,
        ledger: Ledger,
        shelf: Shelf,
        losses: Losses,
        submitter: Submitter,
        window: Window,
        stop: asyncio.Event,
        may_be_known: bool,
    ) -> None:
        """`may_be_known`: Redis may know jobs of an interrupted run."""
        self._queue = queue
        self._source = source
        self._ledger = ledger
        self._shelf = shelf
        self._losses = losses
        self._submitter = submitter
        self._window = window
        self._stop = stop
        self._may_be_known = may_be_known
        self.begun = asyncio.Event()
        """Set when the run's group has a job, or will have none."""

    async def run(self) -> None:
        """Until all rows are submitted or the run is to stop. Raises `RunError`."""
        while not self._stop.is_set():
            await self.until(self._has_room)
            rows = await asyncio.to_thread(self._source.take, max_rows=CHUNK_ROWS, max_bytes=CHUNK_BYTES)
            if not rows or self._stop.is_set():
                return
            for row in rows:
                if isinstance(row, BadRow):
                    self._ledger.refuse(row)
            await self._enqueue([row for row in rows if isinstance(row, Row)])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds or the run is to stop."""
        while not condition() and not self._stop.is_set():
            self._ledger.moved.clear()
            await either(self._ledger.moved.wait(), self._stop.wait())

    def _has_room(self) -> bool:
        return (
            len(self._ledger.unfinished) <= self._window.jobs - CHUNK_ROWS
            and self._ledger.size_bytes <= self._window.size_bytes - CHUNK_BYTES
        )

    async def _enqueue(self, rows: list[Row]) -> None:
        jobs = {self._ledger.job_id(row): row for row in rows}
        new = await self._not_yet_known(jobs) if self._may_be_known else jobs
        self._losses.exempt(jobs)
        for job_id, row in jobs.items():
            self._ledger.expect(job_id, row)
        if new:
            await self._submitter.submit(new)
            self.begun.set()
            self._losses.audit_from_now_on(new)
        if known := jobs.keys() - new.keys():
            self._losses.follow_also(known)

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
