"""An outage: when to try again, and which job tries for all. No I/O but what `Claims` does.

Two origins. A connection that never stood has cost nothing and says nothing of the job; each process finds that out for
itself, because a worker whose own network is broken sees the same as one whose provider is away, and must not stop the
others. Calls that fail at the provider are counted in Redis, by all (`shared.SharedBreakers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from tasks.errors import ErrorCode

__all__ = ["FORGET_S", "PROBE_S", "Claims", "Outage", "OutageKind", "Probe", "Reason"]

FIRST_PAUSE_S = 1.0
LONGEST_UNREACHABLE_S = 30.0
LONGEST_OPEN_S = 60.0

FORGET_S = 300.0
"""An outage that nobody has looked at for so long after its pause is over: the next failure begins another."""

PROBE_S = 15.0
"""How long one job keeps the others waiting for what it finds, at least: its limit's turn, and the time to connect."""

AFTER_OTHERS_S = 1.0
"""How much later than others the job may try that has tried last: its own prompt may be what the provider fails at."""

OutageKind = Literal["unreachable", "failing", "open"]
"""`unreachable`: no connection stands, from here. `failing`: calls fail, as far as this process alone has seen.
`open`: the breaker that all workers share is."""


class Reason(NamedTuple):
    """What the latest try has met: of its failure that which holds no request."""

    code: ErrorCode
    message: str
    http_status: int | None = None
    is_unreachable: bool = False


class Probe(Protocol):
    """The job that tries (`pipeline.trip.Trip`). Its connection stands when its stage has moved on."""

    @property
    def stage(self) -> str: ...


class Claims(Protocol):
    """Who decides which job of the whole fleet tries."""

    async def claim(self, outage: Outage) -> bool: ...

    def give_up(self, outage: Outage) -> None: ...


@dataclass(slots=True, eq=False)
class Outage:
    """One provider's, or one model's, as this process sees it. Instants are epoch seconds."""

    kind: OutageKind
    since: float
    failed_at: float
    pause_s: float
    reason: Reason
    longest_s: float = LONGEST_OPEN_S
    epoch: int = 0
    """Redis's number of what is known of it; 0 where it is the process's own."""

    fleet: Claims | None = None
    probing_until: float = 0.0
    probe: Probe | None = None
    tried_last: Probe | None = None

    @classmethod
    def unreachable(cls, reason: Reason, *, now: float) -> Outage:
        return cls("unreachable", now, now, FIRST_PAUSE_S, reason, LONGEST_UNREACHABLE_S)

    @property
    def until(self) -> float:
        """Nobody tries before."""
        return self.failed_at + self.pause_s

    @property
    def is_over(self) -> bool:
        """Whether the job that tries has found out enough while its call is under way: it has a connection."""
        return self.kind == "unreachable" and self.probe is not None and self.probe.stage != "connecting"

    def looks_again_at(self, now: float, *, every_s: float) -> float:
        """When a job that waits is to ask again."""
        return self.until if now < self.until else min(self.probing_until, now + every_s)

    def holds(self, probe: Probe, now: float) -> bool:
        """Whether this job is the one that tries."""
        return self.probe is probe and now < self.probing_until

    async def claim(self, probe: Probe, now: float) -> bool:
        """Whether this job is to try now. It says what it has found, or calls `release`."""
        is_early = now < self.until or now < self.probing_until
        if is_early or (probe is self.tried_last and now < self.until + AFTER_OTHERS_S):
            return False
        self.probing_until, self.probe = now + max(PROBE_S, self.pause_s), probe
        if self.fleet is None or await self.fleet.claim(self):
            return True
        self.probe = None
        return False

    def release(self, probe: Probe) -> None:
        """This job does not try any longer."""
        if self.probe is not probe:
            return
        self.probing_until, self.probe = 0.0, None
        if self.fleet is not None:
            self.fleet.give_up(self)

    def fail_again(self, reason: Reason, now: float) -> None:
        """The job that tried has failed: all wait twice as long."""
        self.failed_at, self.reason = now, reason
        self.pause_s = min(self.longest_s, 2 * self.pause_s)
        if self.kind != "unreachable":
            self.tried_last = self.probe
        self.probing_until, self.probe = 0.0, None
