"""The ends of cancelled and expired jobs, in their results and in their records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from tasks.wire import redis_keys

from .writer import BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .backend import Backend
    from .entry import Entry

__all__ = ["CANCELLED", "Revocations"]

CLAIM_SCRIPT = Path(__file__).with_name("lua").joinpath("claim.lua").read_text(encoding="utf-8")
ENDED_SCRIPT = Path(__file__).with_name("lua").joinpath("ended.lua").read_text(encoding="utf-8")

CLAIM_MS = 10_000
"""After this long the worker that was ending a cancelled job is taken for dead. Also in broker/lua/sweep.lua."""

CANCELLED = "cancelled"


class Revocations:
    """Ends jobs that do not run. Blocking; raises redis's errors."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def revoke(self, job_ids: Sequence[str], *, reason: str = "revoked", known_only: bool = True) -> None:
        """Record the end of cancelled jobs that still wait.

        A job that runs is left to its worker, which ends its call, and one that another worker is ending to that.
        `known_only`: those without a record are left too.
        """
        for start in range(0, len(job_ids), BATCH_SIZE):
            waiting = self._not_ended(job_ids[start : start + BATCH_SIZE])
            ends = [
                self._revoked(job_id, reason, group_id)
                for job_id, (job_state, group_id) in zip(waiting, self.claim(waiting), strict=True)
                if job_state == "queued" or (not job_state and not known_only)
            ]
            if ends:
                self._backend.write(ends)
                self.record_ends([entry.job_id for entry in ends], CANCELLED)

    def _not_ended(self, job_ids: Sequence[str]) -> list[str]:
        return [
            job_id
            for job_id, has_ended in zip(job_ids, self._backend.have_ended(job_ids), strict=True)
            if not has_ended
        ]

    def claim(self, job_ids: Sequence[str]) -> list[tuple[str, str | None]]:
        """State and group of each job, from its record; those that wait are this worker's to end."""
        if not job_ids:
            return []
        with self._backend.broker_client() as client:
            reply = client.register_script(CLAIM_SCRIPT)(keys=self._records(job_ids), args=[CLAIM_MS])
        words = [word.decode() for word in reply]
        return [(job_state, group_id or None) for job_state, group_id in zip(words[::2], words[1::2], strict=True)]

    def record_ends(self, job_ids: Sequence[str], job_state: str) -> None:
        """Write their ends into their records."""
        with self._backend.broker_client() as client:
            client.register_script(ENDED_SCRIPT)(keys=self._records(job_ids), args=[job_state])

    def _records(self, job_ids: Sequence[str]) -> list[str]:
        return [self._backend.broker_prefix + redis_keys.job(job_id) for job_id in job_ids]

    def _revoked(self, job_id: str, reason: str, group_id: str | None) -> Entry:
        error = self._backend.encode_result(TaskRevokedError(reason), states.REVOKED)
        return self._backend.entry(job_id, error, states.REVOKED, None, Context(group=group_id))
