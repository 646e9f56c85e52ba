"""One job under way: what decides its ladder, and what is known of it so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import orjson

from tasks.results import Attempt
from tasks.wire.kinds import KINDS
from tasks.wire.redis_keys import QUEUE

from ..prompt.failure import Incapable
from ..schema.form import has_schema
from ..schema.steps import Repairs
from .flex_policy import is_patient
from .routing.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import SecretStr

    from config.catalog import Model, Provider, Timeout
    from tasks.wire.vocabulary import Tier

    from ..answers import Known
    from ..breaker import Health, Reason
    from ..limiter import Cost, Permit, Waiter
    from ..prompt.job import JobKind, PromptJob
    from ..providers import Answer, Codec, ProviderRequest
    from ..streams import Feed
    from .packing.caps import CallCaps
    from .record_limit import RecordSizes

__all__ = ["Down", "Route", "Rung", "Shape", "Trip"]


MOST_POSTPONED = 48
"""How many calls that a provider postponed are no attempts: of two days, where it asks for an hour each time."""

MOST_REMEMBERED = 20
"""Failed attempts that a parked job remembers. `RetryPolicy.attempts_cap` has the same default."""


class Shape(NamedTuple):
    """What decides which rungs a job meets. Few shapes occur, and each one's ladder is built once."""

    kind: JobKind
    model: str
    has_deadline: bool
    has_fallbacks: bool | None = None
    """Of the job's own; None: it leaves them to the catalogue."""
    caches: bool = False
    has_schema: bool = False
    may_flex: bool = False
    """Whether a model's flex tier may be asked, if it has one and there is time."""

    @classmethod
    def of(cls, job: PromptJob, *, all_cache: bool = False, any_flex: bool = False) -> Shape:
        """`all_cache`: whether repeatable jobs that do not ask for it are cached too. `any_flex`: whether some
        model has a flex tier.
        """
        options = job.options
        own = None if options.fallbacks is None else bool(options.fallbacks)
        ttl_s = options.cache_ttl_s
        caches = all_cache and job.is_repeatable if ttl_s is None else ttl_s > 0
        schema = ("response_format" in job.body or "text" in job.body) and has_schema(job.body)
        has_deadline = options.deadline_at is not None
        may_flex = any_flex and is_patient(job)
        # Without the Python function that a named tuple is made by: this is done for each job.
        return tuple.__new__(cls, (job.kind, job.model, has_deadline, own, caches, schema, may_flex))


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model's jobs go. `alias` is the name that led here, the model's own or `PROVIDER/MODEL`."""

    alias: str
    model: Model
    provider: Provider
    codec: Codec
    answered_by: str
    repeat_timeouts: bool
    sizes: RecordSizes
    caps: CallCaps
    health: Health
    kinds: frozenset[JobKind]
    """What may be asked of the provider, by its `apis`."""

    def check(self, job: PromptJob) -> None:
        """Raise `Unserved` for a job that this provider can't be asked: before it waits for its turn. `Incapable` where
        another worker's catalogue may know more of the provider."""
        if job.kind not in self.kinds:
            raise _not_offered(job.kind, self.provider.name)
        self.codec.check(job, model=self.model)


def _not_offered(kind: JobKind, provider: str) -> Incapable:
    api = KINDS[kind].api
    lacking = Incapable(
        "not_found",
        f'{provider} is not known to answer {KINDS[kind].path}; if it does, add "{api}" to `apis` in '
        f"[providers.{provider}] of the catalogue, or else name another provider's model",
    )
    lacking.lacks_api = api
    return lacking


class Load(Protocol):
    """The content of a call that is still open to more while it waits for its turn."""

    def cost(self, waiter: Waiter | None = None) -> Cost:
        """What it takes by now. `waiter` stands for it in the limiter's queue, and shows whether a slot is sold."""

    def seal(self, permit: Permit) -> None:
        """It may be sent: decide what it carries, no more than the permit is good for."""


class Trip:
    """What is known so far of a job under way. Times are epoch seconds, by the worker's clock."""

    # What a job does not meet stands in the class: a dataclass would write each of these for each job.
    route: Route
    """Where it goes now: the job's model, or the one of its fallbacks that is being tried."""
    chain: Chain | None = None
    """The models that it may be answered by; None while there is one alone."""
    untried: int = 0
    """Fallbacks after this one. Each is left an attempt, and what they cure is not waited for."""
    move_on_at: float | None = None
    """Later than this the next fallback would have no time; None: there is no deadline, or no other fallback."""
    hurries: bool = False
    """Whether the next fallback is asked at once where this one's turn is far away."""
    arrived_with: str | None = None
    """Its memory before this worker tried the model that is being tried."""
    attempts: int = 0
    """Calls, those of earlier trips of a job that was parked among them."""
    attempts_before: int = 0
    """Those of earlier trips, and of other models."""
    postponed: int = 0
    """Calls that are no attempts, up to a number: the provider asked for more than our longest pause, or was out."""
    tier: Tier = "standard"
    """Of the latest call: which was asked for, or which has served it."""
    timeout: Timeout | None = None
    """How long its call may take; None: what the model states."""
    no_room: int = 0
    """Calls that are no attempts: the flex tier had no room."""
    no_room_since: float | None = None
    """When it had none for the first time."""
    failed: list[Attempt]
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
    repairs: Repairs | None = None
    """Further calls for answers that did not fit the job's schema, and the last of these answers."""
    repaired: str | None = None
    """The step after which an answer fitted the schema."""
    shortened: list[dict[str, Any]] | None = None
    """What was done to inputs that are longer than the model takes."""
    digest: str | None = None
    """What equal prompts have in common, if memory was asked before it began, and its ladder leads to one model."""
    cached: Known | None = None
    """The stored answer that it was given, or that of an equal prompt."""
    priced: tuple[Answer, float | None] | None = None
    """An answer that was stored with what its call cost (US dollars)."""
    followed: str | None = None
    """The call of an equal prompt that it has waited for (`answers.Answers.look`)."""
    redelivered: bool = False
    """Whether a worker that is gone may have begun it."""
    feed: Feed | None = None
    """Where its answer goes as it comes, if somebody reads it."""
    key: SecretStr | None = None
    """The provider's key of the latest call."""
    called_at: float = 0.0
    """When the latest call began."""
    request: ProviderRequest | None = None
    """That of the latest call."""
    headers: Mapping[str, str] | None = None
    """The response headers of the latest call, if it brought any."""
    pack: Load | None = None
    """Of a call for several jobs: what it carries is decided when it may be sent."""
    is_shared: bool = False
    """Whether the call is made for several jobs, or for a part of one."""
    stays: bool = False
    """Whether it waits in its place, however far its turn is."""
    rows: dict[int, dict[str, Any]] | None = None
    """Of a job that takes several calls: the vectors that it has, by their inputs' places."""

    def __init__(self, job: PromptJob, started_at: float, queue: str = QUEUE, held: list[object] | None = None) -> None:
        """`held` gets what must be held until a large answer is stored."""
        self.job = job
        self.started_at = started_at
        self.queue = queue
        self.held = held
        self.failed = []

    def memory(self) -> str | None:
        """What the job must not forget while it is parked, as JSON; None: nothing has happened to it yet."""
        if not (self.attempts or self.may_be_paid) and self.followed is None:
            return None
        known = {
            "attempts": self.attempts,
            "postponed": self.postponed,
            "may_be_paid": self.may_be_paid,
            "paid_twice": self.paid_twice,
            "failed": [asdict(attempt) for attempt in self.failed[-MOST_REMEMBERED:]],
            "repairs": None if self.repairs is None else asdict(self.repairs),
        }
        if self.no_room:
            known["no_room"] = [self.no_room, self.no_room_since]
        if self.followed is not None:
            known["followed"] = self.followed
        if self.chain is not None and self.attempts:
            known["chain"] = asdict(self.chain)
        return orjson.dumps(known).decode()

    def remember(self, memory: str) -> None:
        """Continue where the job was parked. A memory that can't be read leaves the suspicion of a payment."""
        self.arrived_with = memory
        try:
            known = orjson.loads(memory)
            self.failed = [Attempt.from_dict(attempt) for attempt in known["failed"]]
            self.attempts = self.attempts_before = int(known["attempts"])
            self.postponed = int(known.get("postponed", 0))
            self.may_be_paid, self.paid_twice = bool(known["may_be_paid"]), bool(known["paid_twice"])
            self.no_room, self.no_room_since = known.get("no_room", (0, None))
            self.followed = known.get("followed")
            self.repairs = Repairs(**known["repairs"]) if known.get("repairs") else None
            self.chain = Chain.from_dict(known["chain"]) if "chain" in known else None
        except (ValueError, TypeError, KeyError, AttributeError):
            self.may_be_paid = True

    def move_to(self, position: int) -> None:
        """Go to another model of the chain."""
        assert self.chain is not None
        self.chain.position = position
        self.attempts_before = self.attempts
        self.rows = None
        self.request = self.outage = None
        self.arrived_with = self.memory()

    @property
    def attempts_here(self) -> int:
        """Calls of this trip to the model that is being tried."""
        return self.attempts - self.attempts_before

    @property
    def spent(self) -> int:
        """How many of the job's attempts are used up."""
        repairs = 0 if self.repairs is None else self.repairs.calls
        return self.attempts - min(self.postponed, MOST_POSTPONED) - self.no_room - repairs

    @property
    def wait_until(self) -> float | None:
        """Nobody waits longer for the model that is being tried."""
        return self.job.options.deadline_at if self.move_on_at is None else self.move_on_at

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
