"""The next model, where another one may cure what this one can't."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tasks.results import Attempt
from tasks.wire.vocabulary import FLEX

from ...prompt.failure import Failure, Incapable
from ...prompt.parked import Parked
from ...telemetry.counts import counts
from ..limits import estimate
from ..routing.fallback_policy import FAULTS, has_more_context, reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from tasks.wire.kinds import Api
    from tasks.wire.vocabulary import Trigger

    from ...limiter import LimiterRegistry
    from ...prompt.job import PromptJob
    from ...providers import Answer
    from ..routing.chain import Chain
    from ..routing.speeds import Speeds
    from ..trip import Down, Route, Shape, Trip

__all__ = ["Chains", "Fallbacks"]

NEEDS_S = 30.0
"""What a model is left to answer in whose latency is not known."""


class Chains(Protocol):
    """Who knows the models of a job: `router.Router`."""

    def has_chain(self, name: str, *, own: bool | None) -> bool: ...

    def chain(self, job: PromptJob) -> Chain: ...


class Fallbacks:
    """Asks one model after the other until one answers, where another may cure what this one can't."""

    def __init__(
        self,
        chains: Chains,
        *,
        find_route: Callable[[str], Route],
        leave: Callable[[Trip, str, Api | None], Awaitable[None]],
        attempts_of: Callable[[int | None], int],
        limits: LimiterRegistry,
        speeds: Speeds,
        now: Callable[[], float],
    ) -> None:
        """`find_route` leads from a model's name to where its jobs go. `leave` has another worker do the job, if one
        can call the model of this name and this worker does not know it. `attempts_of`: how many attempts a job has
        that asks for so many. `now` gives epoch seconds.
        """
        self._chains = chains
        self._find_route = find_route
        self._leave = leave
        self._attempts_of = attempts_of
        self._limits = limits
        self._speeds = speeds
        self._now = now

    def serves(self, shape: Shape) -> bool:
        return self._chains.has_chain(shape.model, own=shape.has_fallbacks)

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        chain = trip.chain
        if chain is None:
            chain = trip.chain = self._chains.chain(trip.job)
        while True:
            try:
                return await self._ask(trip, chain, down)
            except Failure as failure:
                position = self._following(trip, chain, failure)
                if position is None:
                    raise
                self._move(trip, chain, position, failure)
            except Parked as parked:
                if chain.position or chain.chosen is not None:
                    parked.gap_s = 0.0  # jobs of its lane may wait for another model's limit
                if trip.outage is not None:
                    chain.position = 0  # all are out: whichever works first is to answer
                raise

    async def _ask(self, trip: Trip, chain: Chain, down: Down) -> Answer:
        trip.untried = len(chain.untried)
        trip.move_on_at = self._move_on_at(trip, chain)
        try:
            route = trip.route = self._find_route(chain.name)
            route.check(trip.job)
        except Incapable as lacking:
            await self._leave(trip, chain.name, lacking.lacks_api)
            raise
        trip.hurries = "rate_limited" in _asked_for(trip, route)
        answer = await down(trip)
        if trip.attempts_here and trip.tier != FLEX:
            now = self._now()
            self._speeds.note(chain.name, latency_s=now - trip.called_at, usage=answer.usage, now=now)
        return answer

    def _move_on_at(self, trip: Trip, chain: Chain) -> float | None:
        """When waiting for this model has to end, or the next would have no time."""
        deadline_at = trip.job.options.deadline_at
        if deadline_at is None or not chain.untried:
            return None
        now = self._now()
        latency_s = self._speeds.latency_s(chain.untried[0], now=now)
        needs_s = NEEDS_S if latency_s is None else 2 * latency_s
        return deadline_at - min(needs_s, max(0.0, deadline_at - now) / (len(chain.untried) + 1))

    def _following(self, trip: Trip, chain: Chain, failure: Failure) -> int | None:
        """Where the chain goes on, from 0; None: the job ends with this failure."""
        if self._why(trip, chain, failure) is None or not chain.untried:
            return None
        if trip.spent >= self._attempts_of(trip.job.options.max_attempts):
            failure.advise(f"no attempt is left for {' and '.join(chain.untried)} (`max_attempts`)")
            return None
        after = range(chain.position + 1, len(chain.names))
        return next((position for position in after if self._may_cure(trip, chain, position, failure)), None)

    def _why(self, trip: Trip, chain: Chain, failure: Failure) -> str | None:
        # Of a model that this worker does not know, there is no route.
        asked_for = () if isinstance(failure, Incapable) else _asked_for(trip, trip.route)
        return reason(failure, chain.name, asked_for=asked_for)

    def _may_cure(self, trip: Trip, chain: Chain, position: int, failure: Failure) -> bool:
        try:
            candidate = self._find_route(chain.names[position])
            candidate.check(trip.job)
        except Incapable as lacking:
            return lacking.lacks_api is None  # another worker may know the model
        except Failure:
            return False  # this kind of provider has no words for the request
        if failure.code != "too_large" or failure.http_status is None:
            return True
        tokens = estimate(self._limits, trip.job, trip.route).input_tokens
        return has_more_context(candidate.model, trip.route.model, input_tokens=tokens)

    def _move(self, trip: Trip, chain: Chain, position: int, failure: Failure) -> None:
        """Write down what led to the next model, and go there."""
        counts.add("fallbacks_total", failure.code)
        if failure.code in FAULTS:
            self._speeds.forget(chain.name)
        following = f"{chain.names[position]}: {self._why(trip, chain, failure)}"
        if trip.attempts_here and trip.failed:
            trip.failed[-1] = replace(trip.failed[-1], next=following)
        else:
            self._note_uncalled(trip, chain, failure, following)
        trip.move_to(position)

    def _note_uncalled(self, trip: Trip, chain: Chain, failure: Failure, following: str) -> None:
        """The place in the history of a model that was not called: its turn, a key or the model itself was missing."""
        try:
            answered_by = self._find_route(chain.name).answered_by
        except Incapable:
            answered_by = None
        passed = Attempt(failure.code, failure.message, answered_by=answered_by, at=self._now(), next=following)
        # A job that was parked may pass it again.
        if not any(replace(each, at=passed.at) == passed for each in trip.failed):
            trip.failed.append(passed)


def _asked_for(trip: Trip, route: Route) -> Collection[Trigger]:
    own = trip.job.options.fallback_on
    return route.model.fallback_on if own is None else own
