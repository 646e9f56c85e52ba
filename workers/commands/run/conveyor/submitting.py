"""Puts rows into the queue, and is patient while Redis is away or full."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from tasks import Group, PromptQueue
from tasks.errors import InvalidJob, QueueUnavailable, UnknownModel
from tasks.wire.kinds import KINDS

from ..beside import either
from ..errors import RunError
from ..input.rows import BadRow, Row
from .ledger import Ledger

__all__ = ["Submitter"]

OUTAGE_S = 60.0
"""How long submitting is tried while Redis is away or full."""

OUTAGE_RETRY_S = 1.0


class Submitter:
    """Submits rows that the ledger expects; a row that the queue refuses gets its row of output at once."""

    def __init__(self, queue: PromptQueue, group: Group, ledger: Ledger, *, stop: asyncio.Event) -> None:
        self._queue = queue
        self._group = group
        self._ledger = ledger
        self._stop = stop

    async def submit(self, jobs: Mapping[str, Row]) -> None:
        """Into the run's group, with one call. Raises `RunError`."""
        requests = [submission(row, job_id) for job_id, row in jobs.items()]
        try:
            await self.patiently(lambda: self._group.extend(requests))
        except InvalidJob:
            # One row is bad, or several; those that were stored already are skipped by their ids.
            for (job_id, row), request in zip(jobs.items(), requests, strict=True):
                await self._submit_one(job_id, row, partial(self._group.submit, **request))

    async def submit_again(self, jobs: Mapping[str, Row]) -> None:
        """One by one, and not into the group, which may be closed. Raises `RunError`."""
        for job_id, row in jobs.items():
            await self._submit_one(job_id, row, partial(self._queue.submit, **submission(row, job_id)))

    async def _submit_one(self, job_id: str, row: Row, submit: Callable[[], Awaitable[Any]]) -> None:
        try:
            await self.patiently(submit)
        except InvalidJob as error:
            is_unknown = isinstance(error, UnknownModel)
            bad = BadRow(row.line, row.custom_id, str(error), "not_found" if is_unknown else "bad_request")
            self._ledger.refuse_job(job_id, row, bad)

    async def patiently(self, call: Callable[[], Awaitable[Any]]) -> None:
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


def submission(row: Row, job_id: str) -> dict[str, Any]:
    """The arguments of `submit`. All but model and subject go as `extra_body`: a provider's `metadata` is not ours."""
    subject = KINDS[row.kind].field
    extra = {name: value for name, value in row.body.items() if name not in ("model", subject)}
    request = {"kind": row.kind, "model": row.model, subject: row.body[subject], "extra_body": extra}
    return {"id": job_id, **request, **row.options}
