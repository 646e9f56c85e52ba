"""Jobs that no group tells of: an interrupted run has left them, or Redis had lost them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tasks import PromptQueue
from tasks.errors import JobFailed, QueueUnavailable, UnknownJob
from tasks.results import JobError, PromptResult

from ..errors import RunError
from ..input.source import RowSource
from .ledger import Ledger
from .shelf import Shelf
from .submitting import Submitter

__all__ = ["Losses"]

AUDIT_S = 5.0
"""How often Redis is asked whether it still knows the jobs that have been waiting for so long."""

ROWS_AT_ONCE = 250


class Losses:
    """Asks whether Redis still knows what is unfinished: it may have crashed, or gone to a replica that was behind."""

    def __init__(
        self, queue: PromptQueue, source: RowSource, ledger: Ledger, shelf: Shelf, submitter: Submitter
    ) -> None:
        self._queue = queue
        self._source = source
        self._ledger = ledger
        self._shelf = shelf
        self._submitter = submitter
        self._followed: asyncio.Queue[set[str]] = asyncio.Queue()
        self._not_audited: set[str] = set()
        """Followed, or being submitted."""
        self._submitted_again: set[str] = set()

    def exempt(self, job_ids: Iterable[str]) -> None:
        """Don't ask whether Redis knows them: they are being submitted."""
        self._not_audited.update(job_ids)

    def audit_from_now_on(self, job_ids: Iterable[str]) -> None:
        """They are submitted."""
        self._not_audited.difference_update(job_ids)

    def follow_also(self, job_ids: set[str]) -> None:
        """Wait for each of them, because no group tells of their ends."""
        self._followed.put_nowait(job_ids)

    async def follow(self) -> None:
        """Settle those that are followed as they end, until cancelled."""
        while True:
            outcomes = [self._outcome(job_id) for job_id in await self._followed.get()]
            for outcome in asyncio.as_completed(outcomes):
                if (result := await outcome) is not None:
                    self._ledger.settle([result])

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

    async def audit(self) -> None:
        """Submit again what Redis does not know any more, until cancelled. Raises `RunError`."""
        waiting: set[str] = set()
        while True:
            before, waiting = waiting, self._ledger.unfinished.keys() - self._not_audited
            if lost := await self._unknown(before & waiting):
                await self._submit_again(lost)
            await asyncio.sleep(AUDIT_S)

    async def _unknown(self, job_ids: set[str]) -> set[str]:
        try:
            unknown = job_ids - await self._shelf.known(job_ids)
        except RunError:
            return set()  # an outage; the next audit is soon
        return unknown & self._ledger.unfinished.keys()  # the others have ended, and were deleted, meanwhile

    async def _submit_again(self, job_ids: set[str]) -> None:
        self._not_audited |= job_ids
        self._submitted_again |= job_ids
        lines = {self._ledger.unfinished[job_id].line for job_id in job_ids}
        pieces = self._source.again(lines, max_rows=ROWS_AT_ONCE)
        while rows := await asyncio.to_thread(next, pieces, None):
            jobs = {job_id: row for row in rows if (job_id := self._ledger.job_id(row)) in job_ids}
            await self._submitter.submit_again(jobs)
            self.follow_also(set(jobs))


def _lost(job_id: str, reason: Exception) -> PromptResult:
    message = f"The answer is lost ({reason}). Run the same command again to try this row once more."
    return PromptResult(id=job_id, status="failed", error=JobError(code="internal", message=message))
