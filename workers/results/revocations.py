"""The ends of cancelled and expired jobs, in their results and in their records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from tasks.redis.script import Script
from tasks.wire.vocabulary import Status

from .writer import BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .backend import Backend
    from .entry import Entry

__all__ = ["CANCELLED", "Revocations"]

_LUA = Path(__file__).with_name("lua")
CLAIM = Script.read(_LUA, "claim")
ENDED = Script.read(_LUA, "ended")

CANCELLED: Status = "cancelled"


class Claim(NamedTuple):
    """What the record says of a job that is to end without having run (claim.lua)."""

    state: str
    group: str | None
    task: str


class Revocations:
    """Ends jobs that do not run. Blocking; raises redis's errors."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def revoke(
        self, job_ids: Sequence[str], *, reason: str = "revoked", known_only: bool = True
    ) -> list[tuple[str, str]]:
        """Record the end of cancelled jobs that still wait.

        A job that runs is left to its worker, which ends its call, and one that another worker is ending to that.
        `known_only`: those without a record are left too. Returns id and task of each whose record says now how it
        ended: no worker will take its message.
        """
        recorded = []
        for start in range(0, len(job_ids), BATCH_SIZE):
            waiting = self._not_ended(job_ids[start : start + BATCH_SIZE])
            claims = list(zip(waiting, self.claim(waiting), strict=True))
            ends = [
                self._revoked(job_id, reason, claim.group)
                for job_id, claim in claims
                if claim.state == "queued" or (not claim.state and not known_only)
            ]
            if ends:
                self._backend.write(ends)
                self.record_ends([entry.job_id for entry in ends], CANCELLED)
            recorded += [(job_id, claim.task) for job_id, claim in claims if claim.state == "queued"]
        return recorded

    def _not_ended(self, job_ids: Sequence[str]) -> list[str]:
        return [
            job_id
            for job_id, has_ended in zip(job_ids, self._backend.have_ended(job_ids), strict=True)
            if not has_ended
        ]

    def claim(self, job_ids: Sequence[str]) -> list[Claim]:
        """What each job's record says; those that wait are this worker's to end."""
        if not job_ids:
            return []
        with self._backend.broker_client() as client:
            reply = client.register_script(CLAIM.text)(keys=self._records(job_ids))
        words = [word.decode() for word in reply]
        records = zip(words[::3], words[1::3], words[2::3], strict=True)
        return [Claim(state, group or None, task) for state, group, task in records]

    def record_ends(self, job_ids: Sequence[str], job_state: Status) -> None:
        """Write their ends into their records."""
        with self._backend.broker_client() as client:
            client.register_script(ENDED.text)(keys=self._records(job_ids), args=[job_state])

    def _records(self, job_ids: Sequence[str]) -> list[str]:
        return [self._backend.names.record(job_id) for job_id in job_ids]

    def _revoked(self, job_id: str, reason: str, group_id: str | None) -> Entry:
        error = self._backend.encode_result(TaskRevokedError(reason), states.REVOKED)
        return self._backend.entry(job_id, error, states.REVOKED, None, Context(group=group_id))
