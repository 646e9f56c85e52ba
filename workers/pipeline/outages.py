"""Providers that can't be reached from this process, and when to try again. Decides with values; no clock and no I/O.

A connection that never stood has cost nothing and says nothing of the job, so it is no attempt: the provider's jobs
wait, and one of them at a time tries again, after 1, 2, 4 ... up to 30 seconds. What it finds holds for all.

Each process finds out for itself. A worker whose own network is broken sees the same as one whose provider is away, and
must not stop the others; nor has it to: the jobs that it parks are free for them to take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..prompt.failure import Failure

if TYPE_CHECKING:
    from tasks.errors import ErrorCode

__all__ = ["Outage", "Outages", "Reason", "out_of_reach", "patience_over"]

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

FORGET_S = 300.0
"""An outage that nobody has looked at for so long after its pause is over: the next failure begins another."""

PROBE_S = 15.0
"""How long one job keeps the others waiting for what it finds: the time to connect, and some for its limit's turn."""


class Reason(NamedTuple):
    """What the latest try has met: of its failure that which holds no request."""

    code: ErrorCode
    message: str


class Probe(Protocol):
    """The job that tries (`trip.Trip`). Its connection stands when its stage has moved on."""

    @property
    def stage(self) -> str: ...


@dataclass(slots=True, eq=False)
class Outage:
    """One provider's, as this process sees it. Instants are epoch seconds."""

    since: float
    failed_at: float
    pause_s: float
    reason: Reason

    probing_until: float = 0.0
    probe: Probe | None = None

    @property
    def until(self) -> float:
        """Nobody tries before."""
        return self.failed_at + self.pause_s

    @property
    def is_over(self) -> bool:
        """Whether the job that tries has a connection."""
        return self.probe is not None and self.probe.stage != "connecting"

    def claim(self, now: float) -> bool:
        """Whether the caller is to try now. It says what it has found, or calls `release`."""
        if now < self.until or now < self.probing_until:
            return False
        self.probing_until, self.probe = now + PROBE_S, None
        return True

    def release(self) -> None:
        """Nobody tries."""
        self.probing_until, self.probe = 0.0, None


class Outages:
    """By provider's name. Empty while all can be reached, as far as is known."""

    def __init__(self) -> None:
        self._by_name: dict[str, Outage] = {}

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def of(self, name: str) -> Outage | None:
        """The provider's, if it can't be reached."""
        return self._by_name.get(name)

    def failed(self, name: str, reason: Reason, *, began_at: float, now: float) -> Outage | None:
        """No connection stood for a call that began at `began_at`. The outage, if this begins another pause."""
        outage = self._by_name.get(name)
        if outage is None or now > outage.until + FORGET_S:
            outage = self._by_name[name] = Outage(now, now, FIRST_PAUSE_S, reason)
            return outage
        if began_at < outage.until:
            return None  # it was under way when the pause began
        outage.failed_at, outage.reason = now, reason
        outage.pause_s = min(LONGEST_PAUSE_S, 2 * outage.pause_s)
        outage.release()
        return outage

    def reached(self, name: str, *, began_at: float) -> Outage | None:
        """A call that began then has had a connection. The outage, if this ends it."""
        outage = self._by_name.get(name)
        if outage is None or began_at < outage.failed_at:
            return None
        return self._by_name.pop(name)


def out_of_reach(last: Reason) -> Failure:
    """The end of a job whose provider could not be reached before its deadline."""
    return Failure(
        "expired", f"the job's deadline passed while its provider could not be reached; the last: {last.message}"
    )


def patience_over(last: Reason, patience_s: float) -> Failure:
    """The end of a job without a deadline, which waits for `patience_s`."""
    return Failure(
        last.code,
        f"{last.message}; the job waited for {patience_s:g} s (PROMPTMILL_BREAKER__PATIENCE_S)",
        retryable=True,
    )
