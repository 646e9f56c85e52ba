"""The next model, where another one may cure what this one can't."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tasks.results import Attempt
from tasks.wire.vocabulary import FLEX

from ...prompt.failure import Failure, Incapable, Unserved
from ...prompt.parked import Parked
from ...telemetry.counts import counts
from ..limits import estimate
from ..routing.fallback_policy import FAULTS, has_more_context, reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

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
        unable: set[str] = set()
        served: Failure | None = None
        served_at, gave_way = 0, False
        while True:
            try:
                return await self._ask(trip, chain, unable, down)
            except Failure as failure:
                is_unserved = isinstance(failure, Unserved)
                if is_unserved:
                    unable.add(chain.name)
                else:
                    served, served_at, gave_way = failure, chain.position, not trip.attempts_here
                position = self._following(trip, chain, unable, failure)
                if position is None and is_unserved and served is not None:
                    # What a model has failed at says more of the job than what the last one lacks.
                    if not gave_way:
                        self._note_uncalled(trip, chain, failure, following=None)
                        raise served from None
                    position = served_at  # nobody is left to whom it could give way: its job waits
                if position is None:
                    raise
                self._move(trip, chain, position, failure)
            except Parked as parked:
                if chain.position or chain.chosen is not None:
                    parked.gap_s = 0.0  # jobs of its lane may wait for another model's limit
                if trip.outage is not None:
                    chain.position = 0  # all are out: whichever works first is to answer
                raise

    async def _ask(self, trip: Trip, chain: Chain, unable: Collection[str], down: Down) -> Answer:
        untried = _untried(chain, unable)
        trip.untried = len(untried)
        trip.move_on_at = self._move_on_at(trip, untried)
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

    def _move_on_at(self, trip: Trip, untried: Sequence[str]) -> float | None:
        """When waiting for this model has to end, or the next would have no time."""
        deadline_at = trip.job.options.deadline_at
        if deadline_at is None or not untried:
            return None
        now = self._now()
        latency_s = self._speeds.latency_s(untried[0], now=now)
        needs_s = NEEDS_S if latency_s is None else 2 * latency_s
        return deadline_at - min(needs_s, max(0.0, deadline_at - now) / (len(untried) + 1))

    def _following(self, trip: Trip, chain: Chain, unable: Collection[str], failure: Failure) -> int | None:
        """Where the chain goes on, from 0; None: the job ends with this failure. `unable` are not asked again."""
        untried = _untried(chain, unable)
        if not untried or self._why(trip, chain, failure) is None:
            return None
        if trip.spent >= self._attempts_of(trip.job.options.max_attempts):
            failure.advise(f"no attempt is left for {' and '.join(untried)} (`max_attempts`)")
            return None
        names = (name for name in untried if self._may_cure(trip, name, failure))
        return next(map(chain.names.index, names), None)

    def _why(self, trip: Trip, chain: Chain, failure: Failure) -> str | None:
        # Of a model that this worker does not know, there is no route.
        asked_for = () if isinstance(failure, Incapable) else _asked_for(trip, trip.route)
        return reason(failure, chain.name, asked_for=asked_for)

    def _may_cure(self, trip: Trip, name: str, failure: Failure) -> bool:
        if failure.code != "too_large" or failure.http_status is None:
            return True
        try:
            candidate = self._find_route(name)
        except Incapable:
            return True  # another worker may know the model
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

    def _note_uncalled(self, trip: Trip, chain: Chain, failure: Failure, following: str | None) -> None:
        """The place in the history of a model that was not called: its turn, a key or the model itself was missing, or
        it can't do what the job asks for."""
        try:
            answered_by = self._find_route(chain.name).answered_by
        except Incapable:
            answered_by = None
        passed = Attempt(failure.code, failure.message, answered_by=answered_by, at=self._now(), next=following)
        # A job that was parked may pass it again.
        if not any(replace(each, at=passed.at) == passed for each in trip.failed):
            trip.failed.append(passed)


def _untried(chain: Chain, unable: Collection[str]) -> list[str]:
    return [name for name in chain.untried if name not in unable] if unable else chain.untried


def _asked_for(trip: Trip, route: Route) -> Collection[Trigger]:
    own = trip.job.options.fallback_on
    return route.model.fallback_on if own is None else own
