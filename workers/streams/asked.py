"""Which jobs' answers somebody wants to read as they come, of those that were submitted without saying so.

Redis names them when their messages are taken (workers/broker/lua/exchange.lua); of those that are taken already, each
worker hears at once. A call that has begun is not begun anew for a reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["Asked", "asked"]

MOST_KNOWN: Final = 10_000
"""Every worker hears of every such job, its own or not: the earliest are forgotten."""


class Asked:
    """For any thread. A plain job costs one look into `jobs`."""

    def __init__(self) -> None:
        self.jobs: dict[str, None] = {}

    def hear(self, job_ids: Iterable[str]) -> None:
        """Somebody reads these."""
        jobs = self.jobs
        for job_id in job_ids:
            jobs[job_id] = None
        while len(jobs) > MOST_KNOWN:
            jobs.pop(next(iter(jobs)), None)

    def hear_one(self, job_id: str) -> None:
        """A message of `redis_keys.STREAMS_CHANNEL`."""
        self.hear((job_id,))

    def forget(self, job_id: str) -> None:
        """Its answer has ended."""
        self.jobs.pop(job_id, None)


asked: Final = Asked()
"""This process's."""
