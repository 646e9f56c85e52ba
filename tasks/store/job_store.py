"""What `PromptQueue` needs of the place where jobs are kept: Redis, or memory in users' tests (`testing.py`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..results import PromptResult
from ..streams import StreamEvent
from ..wire.request import NewJob
from ..wire.vocabulary import STATUSES

__all__ = ["GroupEntry", "GroupPage", "GroupProgress", "Sighting", "Store"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of a job: its result, and its record's state. Neither: nobody knows it."""

    result: PromptResult | None
    state: str | None

    @property
    def ended(self) -> bool:
        """Whether the job has ended, with or without a result that can still be read."""
        return self.result is not None or self.state in STATUSES


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How far a group is. `total` is None until the group is closed: more jobs may come."""

    total: int | None = None
    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def ended(self) -> int:
        """Jobs that have ended in any way."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def finished(self) -> bool:
        """Whether no job is left and none will come."""
        return self.total is not None and self.ended >= self.total


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """A job of a group that has ended. `position` is where to go on reading."""

    position: str
    job_id: str


@dataclass(frozen=True, slots=True)
class GroupPage:
    """What ended after an entry. `follows`: that entry is still there; if not, there is nothing to go on from.

    `progress` was counted before the entries were looked for, at the same place.
    """

    progress: GroupProgress
    entries: list[GroupEntry]
    follows: bool = True


class Store(Protocol):
    """All methods raise `QueueUnavailable` when the store can't be reached in time.

    `outage_s` is for how long those who read results try again.
    """

    outage_s: float

    async def submit(self, job: NewJob, *, group: str | None) -> None:
        """Store the job; one whose id is known stays as it is.

        Raises UnknownModel; IdTaken; InvalidJob where the group is closed.
        """

    async def submit_many(self, jobs: Sequence[NewJob], *, group: str) -> None:
        """The same for many jobs at once, all or none of a few megabytes. IdTaken tells which of `jobs` it is."""

    async def look(self, job_id: str) -> Sighting:
        """What is known of the job now."""

    async def result_page(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        """Of the first of them, as many as fit into a few megabytes; at least one."""

    async def wait(self, job_id: str, *, timeout_s: float | None) -> PromptResult:
        """Until the job has ended. Raises ResultTimeout; UnknownJob when it is not, or no longer, known."""

    def stream(
        self, job_id: str, *, after: int, timeout_s: float | None, is_new: bool, is_asked: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        """The job's answer as it comes, from a place on.

        `is_new`: the job was submitted a moment ago, and nobody need look. `is_asked`: it was submitted with `stream`.
        Raises what `wait` does, and JobFailed after what came.
        """

    async def cancel(self, job_ids: Sequence[str]) -> int:
        """Ask that the jobs be cancelled; how many of them had not ended."""

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Delete results and records."""

    async def close_group(self, group_id: str) -> int:
        """The group is complete; how many jobs it has."""

    async def group_progress(self, group_id: str) -> GroupProgress | None:
        """None: nobody knows the group."""

    async def group_jobs(self, group_id: str, *, start: int, count: int) -> list[str]:
        """Ids in the order of submission."""

    async def group_ended(self, group_id: str, *, after: GroupEntry | None, wait_s: float) -> GroupPage | None:
        """Jobs that ended after the entry, in that order; waits up to `wait_s` for the first. None: unknown group."""

    async def group_has(self, group_id: str, entries: Sequence[GroupEntry]) -> list[bool]:
        """Which of the entries that were read are still there."""

    async def aclose(self) -> None:
        """Close connections; the jobs stay."""
