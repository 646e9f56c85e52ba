"""What this process has taken from the queue: leases, and what is to be said of them to Redis. No I/O.

One `Leases` serves all connections that the process makes to one broker, one after the other. kombu ties messages to
the channel that delivered them and requeues them when it closes; a lease is valid on any connection, so that a job
goes on through a reconnect, and is acknowledged on the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

from ..prompt.parked import Follows
from ..telemetry.counts import counts
from ..telemetry.notices import notices
from .lanes import Lanes

__all__ = ["REJECTED", "DeadLetterKind", "Grave", "Lease", "Leases"]

SETTLE_S = 2.0
"""At a server that may have lost what the one before was told, a worker takes nothing for so long: all workers, which
look for Redis once a second, first say what they run."""

LOSS_S = 3.0
"""A Redis that crashes loses the last second (`appendfsync everysec`, two at worst)."""

DOUBT_S = 15.0
"""Longer than an old connection to a server that was replaced can last without an answer."""

DeadLetterKind = Literal["garbage", "invalid", "poison", "rejected", "undeliverable", "unknown_task", "unreadable"]
"""Why a message is a dead letter, in a word; "garbage" is what is no message at all."""

REJECTED: DeadLetterKind = "rejected"
"""The kind of a dead letter of which Celery gave no reason (yet)."""


@dataclass(slots=True)
class Lease:
    """A message that this process holds. `started`: its job has begun, and may have paid for a call."""

    tag: str
    queue: str
    raw: bytes
    started: bool = False
    is_stray: bool = False
    """Its worker had lost sight of it: counts as a delivery that has ended badly."""
    is_suspected: bool = False
    """It is delayed although its call may have been paid for."""
    memory: str | None = None
    """What the job must not forget that is parked."""
    follows: Follows | None = None
    """The call of an equal job that it waits for."""
    deliveries: int = 0
    """How often its worker died: it has one of the places for such messages (triage.py)."""
    job_id: str = ""
    """Known when its job has begun, like the next two."""
    has_record: bool = False
    has_result: bool = False
    """Its result must be stored when it is acknowledged."""


@dataclass(frozen=True, slots=True)
class Grave:
    """A message on its way to the dead letters. `kind` is the reason in a word, `reason` in a sentence."""

    lease: Lease
    kind: DeadLetterKind
    reason: str


@dataclass(slots=True)
class Leases:
    """The process's leases at one broker."""

    held: dict[str, Lease] = field(default_factory=dict)
    channels: WeakSet[Any] = field(default_factory=WeakSet)
    """The open channels that deliver what is held (channel.py)."""
    ending: set[str] = field(default_factory=set)
    """Tags of those whose end is being stored, without their job having run (endings.py)."""
    answered: set[str] = field(default_factory=set)
    """Tags of those whose answer was in memory and is being stored (fast_path.py). They stay when a connection ends."""
    acks: list[Lease] = field(default_factory=list)
    """To acknowledge with the next exchange."""
    acknowledged: deque[tuple[float, list[Lease]]] = field(default_factory=deque)
    """What Redis has recently acknowledged, with the time (monotonic clock, s). After a crash it may not know of it."""
    doubted: list[Lease] = field(default_factory=list)
    """To acknowledge once their results are seen: they were stored at a server that another has replaced since."""
    doubt_until_s: float = 0.0
    """Until then (monotonic clock) what is acknowledged is doubted too: its result may have gone to the old server."""
    is_blocked: bool = False
    """A task blocks the pool's loop: what were taken would not start."""
    take_from_s: float = 0.0
    """Until then (monotonic clock) nothing is taken."""
    server: str | None = None
    """The Redis server of the last connection (`Link.server`)."""
    result_prefix: str | None = None
    """What stands before a job's id in its result's key; None where results are not in the broker's Redis."""
    have_ended: Callable[[list[str]], list[bool]] | None = None
    """Asks the results' Redis, blocking, which jobs have ended. None: there is nobody to ask."""
    started_jobs: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Tag -> id of a job that has begun; the next exchange says so in its record. True: it gets one if it has none."""
    returns: list[Lease] = field(default_factory=list)
    """To be put back at the front of their queues."""
    delays: list[tuple[Lease, int]] = field(default_factory=list)
    """Not due yet, with the time (ms, Redis's clock) when they are."""
    graves: list[Grave] = field(default_factory=list)
    lanes: Lanes = field(default_factory=Lanes)
    condemned: dict[str, tuple[DeadLetterKind, str]] = field(default_factory=dict)
    """Tag -> (kind, reason): when Celery lets go of it, it is to be buried, not forgotten."""
    tell_end: Callable[[Grave], bool] = lambda grave: True
    """Called before a message goes to the dead letters, to tell whoever waits for its job. False: it could not be told,
    so leave the message alone; when its lease has ended, another worker finds the same."""

    @property
    def has_news(self) -> bool:
        """Whether Redis must be told something."""
        return self.has_acks or self.has_more_than_acks

    @property
    def has_acks(self) -> bool:
        """Whether there is something for an exchange to carry."""
        return bool(self.acks or self.started_jobs)

    @property
    def has_more_than_acks(self) -> bool:
        """Whether there is something that needs a command of its own."""
        return bool(self.returns or self.delays or self.graves or self.doubted or counts or notices)

    def start(self, tag: str, job_id: str, *, has_record: bool = False, has_result: bool = False) -> None:
        """The message's job begins. `has_record`: it is of a kind whose jobs have records, whoever sent them.
        `has_result`: Celery will acknowledge the message after storing the job's result."""
        lease = self.held.get(tag)
        if lease is not None:
            lease.started, lease.job_id, lease.has_record, lease.has_result = True, job_id, has_record, has_result
            self.started_jobs[tag] = job_id, has_record

    def ack(self, tag: str) -> None:
        """Celery is done with the message."""
        if tag in self.condemned:
            self.bury(tag)
        elif (lease := self.held.pop(tag, None)) is not None:
            self.acks.append(lease)

    def recall(self, tag: str) -> None:
        """Hold a message again whose acknowledgement is not said yet."""
        for lease in self.acks:
            if lease.tag == tag:
                self.acks.remove(lease)
                self.held[tag] = lease
                return

    def set_result(self, tag: str, job_id: str, *, expected: bool) -> None:
        """Whether the message's result must be stored when it is acknowledged."""
        if (lease := self.held.get(tag)) is not None:
            lease.job_id, lease.has_result = job_id, expected

    def note_acknowledged(self, leases: list[Lease], now_s: float) -> None:
        """Redis has acknowledged these. Remembered for `LOSS_S`."""
        for lease in leases:
            lease.raw = b""
        self.acknowledged.append((now_s, leases))
        while self.acknowledged[0][0] < now_s - LOSS_S:
            self.acknowledged.popleft()

    def meet(self, server: str | None, now_s: float) -> bool:
        """A connection stands to this server. True if it may not have what the one before was told.

        Then acknowledgements are doubted, those of the last seconds too, and records are told again what runs.
        """
        before, self.server = self.server, server or ""
        if before is None or (server is not None and server == before):
            return False
        self.take_from_s, self.doubt_until_s = now_s + SETTLE_S, now_s + DOUBT_S
        for _, leases in self.acknowledged:
            self.doubted += [lease for lease in leases if lease.has_result]
        self.acknowledged.clear()
        self.doubt_acks(now_s)
        self.started_jobs |= {
            lease.tag: (lease.job_id, lease.has_record) for lease in self.held.values() if lease.started
        }
        return True

    def doubt_acks(self, now_s: float) -> None:
        """While a loss is recent, have results looked up before the acknowledgements are said."""
        if self.acks and now_s < self.doubt_until_s:
            self.doubted += [lease for lease in self.acks if lease.has_result]
            self.acks = [lease for lease in self.acks if not lease.has_result]

    def hand_back(self, tag: str) -> None:
        """Put the message back at the front of its queue, for any worker."""
        lease = self._let_go(tag)
        if lease is not None:
            self.returns.append(lease)

    def hand_back_unstarted(self, tag: str) -> None:
        """Put the message back, of a job that was announced and has not begun: it cost nothing."""
        if (lease := self.held.get(tag)) is not None:
            lease.started = False
            self.hand_back(tag)

    def hand_back_strays(self, tags: Iterable[str]) -> int:
        """Put back what was held and not run. A job that had started counts the delivery, or it might never end."""
        strays = [lease for tag in tags if (lease := self._let_go(tag)) is not None]
        for lease in strays:
            self.condemned.pop(lease.tag, None)
            lease.is_stray = lease.started
            counts.add("stray_leases_total", "started" if lease.started else "unstarted")
        self.returns += strays
        return len(strays)

    def delay(
        self,
        tag: str,
        due_ms: int,
        *,
        suspected: bool = False,
        memory: str | None = None,
        follows: Follows | None = None,
    ) -> None:
        """Keep the message in Redis until it is due. `suspected`: its call may have been paid for.

        `memory` is what the job must not forget until then; it comes back with the message. `follows`: it comes back
        earlier, when that call has ended.
        """
        lease = self._let_go(tag)
        if lease is not None:
            lease.is_suspected, lease.memory, lease.follows = suspected, memory, follows
            self.delays.append((lease, due_ms))

    def _let_go(self, tag: str) -> Lease | None:
        self.started_jobs.pop(tag, None)  # its record is to say that the job waits
        return self.held.pop(tag, None)

    def condemn(self, tag: str, kind: DeadLetterKind, reason: str) -> None:
        """When Celery lets go of this message, bury it. The first reason given stands; one it lets go of gets this."""
        if tag in self.held:
            self.condemned.setdefault(tag, (kind, reason))
        self.graves = [
            Grave(grave.lease, kind, reason) if grave.lease.tag == tag and grave.kind == REJECTED else grave
            for grave in self.graves
        ]

    def bury(self, tag: str) -> None:
        """Move the message to the dead letters."""
        kind, reason = self.condemned.pop(tag, (REJECTED, "the task rejected the message"))
        lease = self.held.pop(tag, None)
        if lease is not None:
            self.graves.append(Grave(lease, kind, reason))

    def lose(self, tags: list[str]) -> list[Lease]:
        """Forget leases that have ended: another worker may have the messages."""
        lost = [self.held.pop(tag) for tag in tags if tag in self.held]
        for tag in tags:
            self.condemned.pop(tag, None)
        return lost
