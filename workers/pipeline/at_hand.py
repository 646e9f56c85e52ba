"""Answers that are in the memory of this process: given before a job has a place, because there is nothing to wait for.

What decides is the job's ladder. On one with these rungs alone above that of the answers, a stored answer is all that a
job can come to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ..prompt.failure import Failure
from ..prompt.job import parse
from .outcome import answered
from .trip import Shape, Trip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tasks.results import PromptResult

    from ..answers import Answers
    from ..prompt.job import JobKind, PromptJob
    from .pipeline import Ladder
    from .trip import Route

__all__ = ["AtHand", "Read"]

MARK: Final = b"cache_ttl_s"
"""The text of a job that asks for the cache holds it, and of few others."""


class Read(NamedTuple):
    """A job that was read and looked up. `data` is its answer as it is stored; None: it is not in memory."""

    job: PromptJob
    ladder: Ladder
    digest: str
    data: bytes | None


class AtHand:
    """Looks jobs up on whatever thread takes them, and answers them on the loop's."""

    def __init__(
        self,
        answers: Answers,
        *,
        digest_of: Callable[[PromptJob, Route], str],
        ladder: Callable[[Shape], Ladder],
        ttl_s: float | None,
        any_flex: bool,
        now: Callable[[], float],
        read_stamp: Callable[[float], float],
    ) -> None:
        """`ttl_s`, `any_flex`, `now` and `read_stamp`: as the pipeline's."""
        self._answers = answers
        self._digest_of = digest_of
        self._ladder = ladder
        self._ttl_s = ttl_s
        self._any_flex = any_flex
        self._now = now
        self._read_stamp = read_stamp
        self.mark = MARK if ttl_s is None else b""
        """No job may be answered whose text has not these bytes."""

    def read(self, kind: JobKind, job_id: str, args: Sequence[str], *, group: str | None) -> Read | None:
        """Read a job of our client and look it up. None: it goes the usual way, unread."""
        now = self._now()
        try:
            job = parse(kind, job_id, args, {}, group=group, now=now, read_stamp=self._read_stamp)
            shape = Shape.of(job, all_cache=self._ttl_s is not None, any_flex=self._any_flex)
            if not shape.caches or kind == "embed":
                return None
            ladder = self._ladder(shape)
        except Failure:
            return None
        route = ladder.route
        if route is None or route.model.flex:
            return None
        deadline_at, ttl_s = job.options.deadline_at, job.options.cache_ttl_s or self._ttl_s
        if ttl_s is None or (deadline_at is not None and deadline_at <= now):
            return None
        digest = self._digest_of(job, route)
        # Without the Python function that a named tuple is made by: this is done for each job.
        return tuple.__new__(Read, (job, ladder, digest, self._answers.at_hand(digest, ttl_s=ttl_s)))

    def answer(self, read: Read) -> PromptResult:
        """The result of a job whose answer is in memory. On the loop's thread. Raises ValueError where it is not."""
        known = None if read.data is None else self._answers.opened(read.data)
        if known is None:
            raise ValueError("the job has to be run")
        now = self._now()
        trip = Trip(read.job, now)
        assert read.ladder.route is not None
        trip.route, trip.cached = read.ladder.route, known
        return answered(trip, known.answer, now)
