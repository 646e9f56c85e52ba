"""One job under way: what decides its ladder, and what is known of it so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import orjson

from tasks.results import Attempt
from tasks.wire.redis_keys import QUEUE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import SecretStr

    from config.catalog import Model, Provider

    from ..breaker import Health, Reason
    from ..prompt.job import JobKind, PromptJob
    from ..providers import Answer, Codec, ProviderRequest
    from .record_limit import RecordSizes

__all__ = ["Down", "Route", "Rung", "Shape", "Trip"]


MOST_REMEMBERED = 20
"""Failed attempts that a parked job remembers. `RetryPolicy.attempts_cap` has the same default."""


class Shape(NamedTuple):
    """What decides which rungs a job meets. Few shapes occur, and each one's ladder is built once."""

    kind: JobKind
    model: str
    has_deadline: bool
    has_fallbacks: bool = False
    caches: bool = False
    has_schema: bool = False

    @classmethod
    def of(cls, job: PromptJob) -> Shape:
        return cls(job.kind, job.model, job.options.deadline_at is not None)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model's jobs go."""

    model: Model
    provider: Provider
    codec: Codec
    answered_by: str
    repeat_timeouts: bool
    sizes: RecordSizes
    health: Health


@dataclass(slots=True)
class Trip:
    """What is known so far of a job under way. Times are epoch seconds, by the worker's clock."""

    job: PromptJob
    started_at: float
    queue: str = QUEUE
    route: Route = field(init=False)
    """Where it goes now: the job's model, or the one of its fallbacks that is being tried."""
    untried: int = 0
    """Fallbacks after this one. Each is left an attempt, and what they cure is not waited for."""
    attempts: int = 0
    """Calls, those of earlier trips of a job that was parked among them."""
    attempts_before: int = 0
    """Those of earlier trips."""
    postponed: int = 0
    """Calls that are no attempts of the job's: the provider asked for more than our longest pause, or was out."""
    failed: list[Attempt] = field(default_factory=list)
    may_be_paid: bool = False
    """A call that brought no answer may have been paid for."""
    paid_twice: bool = False
    """So it is suspected, for another call followed."""
    was_cut: bool = False
    """The call under way was stopped after it had been sent."""
    outage: Reason | None = None
    """Why it waits for its provider."""
    is_probe: bool = False
    """Whether it tries a provider that is out, for all others."""
    asks_others: bool = False
    """Whether it waits to hear if another worker can do it."""
    held: list[object] | None = None
    """Gets what must be held until a large answer is stored."""

    key: SecretStr | None = None
    """The provider's key of the latest call."""
    called_at: float = 0.0
    """When the latest call began."""
    request: ProviderRequest | None = None
    """That of the latest call."""
    headers: Mapping[str, str] | None = None
    """The response headers of the latest call, if it brought any."""

    def memory(self) -> str | None:
        """What the job must not forget while it is parked, as JSON; None: nothing has happened to it yet."""
        if not self.attempts:
            return None
        known = {
            "attempts": self.attempts,
            "postponed": self.postponed,
            "may_be_paid": self.may_be_paid,
            "paid_twice": self.paid_twice,
            "failed": [asdict(attempt) for attempt in self.failed[-MOST_REMEMBERED:]],
        }
        return orjson.dumps(known).decode()

    def remember(self, memory: str) -> None:
        """Continue where the job was parked. A memory that can't be read leaves the suspicion of a payment."""
        try:
            known = orjson.loads(memory)
            self.failed = [Attempt.from_dict(attempt) for attempt in known["failed"]]
            self.attempts = self.attempts_before = int(known["attempts"])
            self.postponed = int(known.get("postponed", 0))
            self.may_be_paid, self.paid_twice = bool(known["may_be_paid"]), bool(known["paid_twice"])
        except (ValueError, TypeError, KeyError, AttributeError):
            self.may_be_paid = True

    @property
    def attempts_here(self) -> int:
        """Calls of this trip."""
        return self.attempts - self.attempts_before

    @property
    def stage(self) -> str:
        """How far the latest call has come. A connection stands when it is no longer "connecting"."""
        return "connecting" if self.request is None else self.request.stage


Down: TypeAlias = "Callable[[Trip], Awaitable[Answer]]"
"""The ladder below a rung."""


class Rung(Protocol):
    """One worry of a prompt's life. It knows no other rung.

    It passes the trip on to `down`, the ladder below it, as often as its worry asks, and returns the answer. What it
    can't cure, it raises as a `Failure`; `Parked` and cancellation pass through it.
    """

    def serves(self, shape: Shape) -> bool:
        """Whether jobs of this shape meet the rung. Asked once for each shape: what may change, it looks at later."""

    async def __call__(self, trip: Trip, down: Down) -> Answer: ...
