"""The results of a group in the order of completion: by pages, each job once, through outages and takeovers.

Redis may lose the last of what it said: it crashes and has not written it down (`appendfsync everysec`), or a replica
takes over that was behind. The group's stream then ends earlier than where the reader stands, and the jobs whose ends
are gone end once more, as new entries. Whatever was lost, what is left is a beginning of what there was. So with each
read Redis is asked for the entry that was read last. If that is gone, the reader goes back to the last one that is
still there, and leaves out the jobs that it has delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from ..errors import GroupRolledBack, UnknownJob
from ..results import PromptResult
from ..wire.record import lost
from .job_store import GroupEntry, GroupProgress, Store
from .patience import Patience

__all__ = ["GroupReader", "unknown_group"]

REMEMBERED: Final = 10_000
"""Entries that a reader remembers, 3 MB: five seconds of 2,000 results each may be lost and are not delivered twice."""

_OPEN_GROUP_WAIT_S: Final = 0.25
"""Nothing wakes a reader when a group is closed after its last job has ended; it looks this often."""
_CLOSED_GROUP_WAIT_S: Final = 2.0
_LATE_RESULT_TRIES: Final = 10
_LATE_RESULT_S: Final = 0.05
_LOOK_BACK: Final = 500


class GroupReader:
    """One pass through a group, from its first result to its last."""

    def __init__(self, group_id: str, store: Store, *, remembered: int = REMEMBERED) -> None:
        self._group_id = group_id
        self._store = store
        self._remembered = remembered
        self._ask = Patience(store.outage_s).until_answered
        self._last: GroupEntry | None = None
        self._count = 0  # of entries up to `_last`
        self._read: dict[str, GroupEntry] = {}  # the newest of them by the job's id, in their order
        self._has_forgotten = False
        # Delivered jobs whose ends Redis has lost. They end again, unless their answers are lost for good.
        self._ended_elsewhere: set[str] = set()
        self._total: int | None = None
        self._total_then: int | None = None  # when they were delivered

    async def pages(self) -> AsyncIterator[list[PromptResult]]:
        """Results as they are read, until the group is complete. Raises UnknownJob, GroupRolledBack."""
        wait_s = 0.0
        while True:
            page = await self._ask(partial(self._store.group_ended, self._group_id, after=self._last, wait_s=wait_s))
            if page is None:
                raise unknown_group(self._group_id)
            if not page.follows:
                await self._go_back()
                continue
            self._total = page.progress.total
            if not page.entries and self._is_complete(page.progress):
                return
            async for results in self._results(page.entries):
                yield results
            wait_s = self._wait_s(page.progress, has_read=bool(page.entries))

    def _is_complete(self, progress: GroupProgress) -> bool:
        """Whether nothing will come after an empty page; its counters were read before it, in the same Redis."""
        if progress.total is None:
            return False
        delivered_elsewhere = len(self._ended_elsewhere) if progress.total == self._total_then else 0
        return progress.ended + delivered_elsewhere >= progress.total

    def _wait_s(self, progress: GroupProgress, *, has_read: bool) -> float:
        if progress.total is None:
            return _OPEN_GROUP_WAIT_S
        may_be_complete = self._is_complete(progress) or (has_read and self._count >= progress.total)
        return 0.0 if may_be_complete else _CLOSED_GROUP_WAIT_S

    # -- one page

    async def _results(self, entries: Sequence[GroupEntry]) -> AsyncIterator[list[PromptResult]]:
        """The results of jobs that have ended, a few megabytes at a time."""
        rest = list(entries)
        while rest:
            results = await self._look_up(rest)
            ready = [entry.job_id in results or self._is_delivered(entry) for entry in rest]
            page = rest[: ready.index(False)] if False in ready else rest
            kept = await self._until_first_gone(page, results)
            ended = dict.fromkeys(entry.job_id for entry in kept if not self._is_delivered(entry))
            for entry in kept:
                self._note(entry)
            if ended:
                yield [results[job_id] or lost(job_id) for job_id in ended]
            if len(kept) < len(page):
                return  # the next read finds that what was read last is not there, and goes back
            rest = rest[len(page) :]

    async def _look_up(self, entries: Sequence[GroupEntry]) -> dict[str, PromptResult | None]:
        """Results of the first jobs that are not delivered. One that is not there at first may be on its way."""
        job_ids = list(dict.fromkeys(entry.job_id for entry in entries if not self._is_delivered(entry)))
        found = await self._result_page(job_ids)
        for _ in range(_LATE_RESULT_TRIES):
            missing = [job_id for job_id, result in found.items() if result is None]
            if not missing:
                break
            await asyncio.sleep(_LATE_RESULT_S)
            found |= await self._result_page(missing)
        return found

    async def _result_page(self, job_ids: list[str]) -> dict[str, PromptResult | None]:
        results = await self._ask(partial(self._store.result_page, job_ids)) if job_ids else []
        return dict(zip(job_ids, results, strict=False))

    async def _until_first_gone(
        self, page: list[GroupEntry], results: dict[str, PromptResult | None]
    ) -> list[GroupEntry]:
        """Without what Redis has lost since the page was read: those jobs have no result, and end once more."""
        missing = [entry for entry in page if entry.job_id in results and results[entry.job_id] is None]
        if not missing:
            return page
        there = await self._ask(partial(self._store.group_has, self._group_id, missing))
        gone = [entry for entry, is_there in zip(missing, there, strict=True) if not is_there]
        return page[: page.index(gone[0])] if gone else page

    def _is_delivered(self, entry: GroupEntry) -> bool:
        return entry.job_id in self._read or entry.job_id in self._ended_elsewhere

    def _note(self, entry: GroupEntry) -> None:
        self._last = entry
        self._count += 1
        self._ended_elsewhere.discard(entry.job_id)
        self._read.pop(entry.job_id, None)  # so that it stands at the end
        self._read[entry.job_id] = entry
        if len(self._read) > self._remembered:
            del self._read[next(iter(self._read))]
            self._has_forgotten = True

    # -- after a loss

    async def _go_back(self) -> None:
        """To the newest entry that Redis still has. Raises GroupRolledBack where that is older than the memory."""
        newest_first = list(reversed(self._read.values()))
        kept = await self._newest_kept(newest_first)
        if kept is None and self._has_forgotten:
            raise GroupRolledBack(
                f"Redis has lost more of group {self._group_id} than the last {self._remembered:,} of the answers that "
                "were read, as after a takeover by a replica that was far behind. The answers that you have are "
                "right. Call as_completed() again: it begins with the first; skip the ids that you have."
            )
        gone = newest_first if kept is None else newest_first[: newest_first.index(kept)]
        self._last = kept
        self._count = max(0, self._count - len(gone))
        for entry in gone:
            del self._read[entry.job_id]
        # Of a group that was closed before the loss, all jobs are known after it; of another one, some may be gone too.
        is_same = not self._ended_elsewhere or self._total_then == self._total
        self._total_then = self._total if is_same else None
        self._ended_elsewhere.update(entry.job_id for entry in gone)

    async def _newest_kept(self, newest_first: Sequence[GroupEntry]) -> GroupEntry | None:
        for start in range(0, len(newest_first), _LOOK_BACK):
            part = newest_first[start : start + _LOOK_BACK]
            there = await self._ask(partial(self._store.group_has, self._group_id, part))
            if True in there:
                return part[there.index(True)]
        return None


def unknown_group(group_id: str) -> UnknownJob:
    """The error for an id of which there is no group."""
    return UnknownJob(f"no group {group_id} is known: the id is wrong, it has expired, or Redis was wiped")
