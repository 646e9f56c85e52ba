"""One job's inputs on their way through calls that it shares with others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tasks.results import Attempt, Usage

from ...providers import Answer
from ..costs import known_cost_usd
from ..outcome import attempt_of, cut_off
from .shares import added

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from tasks.wire.vocabulary import Priority

    from ...prompt.failure import Failure
    from ..trip import Trip

__all__ = ["Item", "Member", "envelope_of", "whole_numbers"]

NOTHING = Usage()


@dataclass(slots=True, eq=False)
class Member:
    """A job that waits until each of its inputs has a vector, or one has failed. See `limiter.waiting.Waits`.

    `places` are those of its `values` in the job's input; `weights` their sizes. A job that comes again, because a
    call of several has failed, brings only the inputs without a vector.
    """

    trip: Trip
    values: Sequence[Any]
    weights: Sequence[int]
    done: asyncio.Future[None]
    priority: Priority = "normal"
    tenant: str = ""
    places: Sequence[int] | None = None
    total: int = 1
    """How many inputs the job has, with those that have their vectors."""
    units: float = 1.0
    gone: bool = False
    taken: int = 0
    """How many of its inputs a call has taken."""
    calls: int = 0
    """Calls under way with inputs of it that have neither failed nor ended."""
    failure: Failure | None = None
    usage: Usage | None = field(default_factory=lambda: NOTHING)
    counted: dict[str, int] = field(default_factory=dict)
    """Its share of the numbers in the answers' `usage`."""
    envelope: Mapping[str, Any] = field(default_factory=dict)
    """The answer's fields beside vectors and usage."""
    called: bool = False

    @property
    def is_begun(self) -> bool:
        """Whether something of it may have been paid for, that would be lost if it went away."""
        return bool(self.taken or self.trip.rows)

    @property
    def is_whole(self) -> bool:
        """Whether each of its inputs has its vector."""
        return len(self.trip.rows or ()) == self.total

    def place(self, position: int) -> int:
        """Where one of its values stands in the job's input."""
        return position if self.places is None else self.places[position]

    def begin_with(self, tried: Answer) -> None:
        """One of its inputs was sent by itself, and has its vector."""
        self.called = True
        self.usage = tried.usage
        self.counted = whole_numbers(tried.response.get("usage"))
        self.envelope = envelope_of(tried)

    def note_call(self, made: Trip) -> None:
        """A call with inputs of it was made. However many it takes at a time, they are one attempt."""
        trip = self.trip
        trip.called_at, trip.request, trip.headers, trip.key = made.called_at, made.request, made.headers, made.key
        trip.tier = made.tier
        if trip.held is not None and made.held:
            trip.held += made.held
        if not self.called:
            self.called = True
            trip.attempts += 1
            trip.paid_twice = trip.paid_twice or trip.may_be_paid

    def receive(self, position: int, row: dict[str, Any], usage: Usage | None, counted: Mapping[str, int]) -> None:
        """The vector of one input, and its share of what the call took."""
        place = self.place(position)
        trip = self.trip
        if trip.rows is None:
            trip.rows = {}
        trip.rows[place] = row if row.get("index") == place else {**row, "index": place}
        self.usage = added(self.usage, usage)
        for name, share in counted.items():
            self.counted[name] = self.counted.get(name, 0) + share

    def fail(self, failure: Failure, made: Trip) -> None:
        """A call has failed for an input of it. Only the first failure counts."""
        if self.failure is not None:
            return
        self.failure = failure
        attempt = made.failed[-1] if made.failed and not failure.unreachable else None
        if attempt is not None:
            self.note_call(made)
        elif self.usage is NOTHING:
            return  # nothing was sent
        else:
            attempt = Attempt(failure.code, failure.message, answered_by=self.trip.route.answered_by, at=made.called_at)
        self._note(replace(attempt, message=failure.message, usage=failure.usage))

    def note_cut(self, made: Trip, *, now: float) -> None:
        """The job goes away while the call is under way."""
        if made.request is None:
            return
        self.note_call(made)
        trip = self.trip
        trip.was_cut = made.request.stage == "sent"
        self._note(attempt_of(trip, cut_off(trip), now))

    def _note(self, attempt: Attempt) -> None:
        """Write the attempt down, as `rungs.call` does for a job alone; with it what the job's other inputs have cost
        this time."""
        trip, usage = self.trip, attempt.usage
        if self.usage is not NOTHING:
            usage = added(self.usage, usage or NOTHING)
        cost_usd = known_cost_usd(trip.route.model, usage, trip.tier)
        trip.failed.append(replace(attempt, usage=usage, cost_usd=cost_usd))
        trip.paid_twice = trip.may_be_paid
        trip.may_be_paid = trip.may_be_paid or attempt.suspected_payment

    def answer(self) -> Answer:
        """All vectors, in the order of the inputs."""
        rows = self.trip.rows or {}
        response = {**self.envelope, "data": [rows[place] for place in sorted(rows)], "usage": self.counted}
        if self.usage is None:
            del response["usage"]
        return Answer(None, response, self.usage)


def envelope_of(answer: Answer) -> dict[str, Any]:
    """The answer's fields beside its vectors and its usage."""
    return {name: value for name, value in answer.response.items() if name not in {"data", "usage"}}


def whole_numbers(usage: Any) -> dict[str, int]:
    """What an answer's `usage` counts."""
    if not isinstance(usage, dict):
        return {}
    return {name: value for name, value in usage.items() if type(value) is int and value >= 0}


Item = tuple[Member, int]
"""One input: whose, and its position among the member's values."""
