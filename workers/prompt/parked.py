"""A job that gives its place back and is run again later."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Follows", "Parked"]


class Follows(NamedTuple):
    """A call of an equal job: the key of what Redis knows of it (`redis_keys.flight`), and the token of its leader."""

    flight: str
    token: str


class Parked(BaseException):
    """The job is to be run again at `until_s` (epoch seconds, the worker's clock): no state, no retry counted.

    Its message waits in Redis and takes up no place in any worker. `gap_s`: how much later the next of its lane is to
    come back (workers/broker/lanes.py); 0: nobody knows. `for_others`: this worker can't do it, another can. `follows`:
    it waits for the call of an equal job, and comes back when that ends, if it ends earlier. `keeps_lead`: equal
    jobs wait for it, as what it waits for they would have to wait for too.
    Not an `Exception`, as `CancelledError` is none: it passes through the ladder and through Celery's tracer, which
    would render the traceback of an `Ignore` twice, its own long frame included (over 1 ms of CPU a job; thousands are
    parked in a row).
    """

    def __init__(
        self,
        until_s: float,
        reason: str,
        *,
        gap_s: float = 0.0,
        for_others: bool = False,
        follows: Follows | None = None,
        keeps_lead: bool = True,
    ) -> None:
        super().__init__(reason)
        self.until_s = until_s
        self.reason = reason
        self.gap_s = gap_s
        self.for_others = for_others
        self.follows = follows
        self.keeps_lead = keeps_lead
        self.memory: str | None = None
        """What the job must not forget until then (`pipeline.trip.Trip.memory`); set by the pipeline."""
