"""By the provider's flex tier, for less, where the job has the time; by the standard tier in time for its deadline."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tasks.wire.vocabulary import FLEX

from ....prompt.failure import Failure
from ....prompt.parked import Parked
from ....providers.tiers import tier_refused
from ....telemetry.counts import counts
from ...routing.speeds import Speeds
from .latest import MOST_MODELS, STEP, Latest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from pydantic import SecretStr

    from config.catalog import Model, Provider, Timeout

    from ....limiter import LimiterRegistry
    from ....prompt.job import PromptJob
    from ....providers import Answer
    from ...flex_policy import FlexPolicy
    from ...trip import Down, Shape, Trip

__all__ = ["Flex"]

FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 300.0
"""After a refusal for want of room: doubled with each, and a random half of it less."""

NEEDS_S: Final = 120.0
"""What the standard tier is left to answer in where its latency is not known."""

MARGIN_S: Final = 30.0
LATENCIES: Final = 4.0
"""Where it is known: so many of them, one to answer and the rest for another attempt, and the margin."""

RESERVED: Final = 2.0
"""Times what 95 % of the latest flex calls took, and no less than the longest of them took, is reserved for one."""

FRESH_S: Final = 3_600.0
"""Calls of which the latest is older say little: a tier that was empty at night is full in the morning."""

AGAIN: Final = "the flex tier again"


class Flex:
    """Asks a model's flex tier while there is time for it, and waits while that has no room; else the standard tier.

    A flex call begins only if the standard tier still has its time after it: after what the latest calls took, with a
    margin, or after the whole time-out while too few are known. One that takes longer than that is broken off for the
    standard tier only where time-outs may be repeated, as it may be paid for. What is refused for want of room is not
    charged, is no attempt, and no limit of the model's.
    """

    def __init__(
        self,
        policy: FlexPolicy,
        *,
        reaches: Callable[[Shape], bool],
        limits: LimiterRegistry,
        keys_of: Callable[[Provider], Sequence[SecretStr | None]],
        park_after_s: float | None,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: Random,
    ) -> None:
        """`reaches`: whether a model that jobs of the shape may get to has the tier. `now`: epoch seconds. Who waits
        for longer than `park_after_s` is parked; None: nobody is.
        """
        self._policy = policy
        self._reaches = reaches
        self._limits = limits
        self._keys_of = keys_of
        self._park_after_s = park_after_s
        self._now = now
        self._sleep = sleep
        self._rng = rng
        self._speeds = Speeds()
        self._latest: dict[str, Latest] = {}

    def serves(self, shape: Shape) -> bool:
        return shape.may_flex and self._reaches(shape)

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        while self._has_time(trip):
            refusal = await self._ask(trip, down)
            if not isinstance(refusal, Failure):
                return refusal
            pause_s = self._pause_s(trip, refusal)
            if not self._has_time(trip, in_s=pause_s):
                _note_change(trip)
                break
            await self._wait(pause_s)
        return await self._ask_standard(trip, down)

    async def _ask(self, trip: Trip, down: Down) -> Answer | Failure:
        """The answer, or that the tier has no room."""
        asked, trip.job = trip.job, _in_tier(trip.job)
        trip.tier, trip.timeout = FLEX, self._timeout(trip)
        try:
            answer = await down(trip)
        except Failure as failure:
            if failure.code == "timeout" and not failure.unreachable:
                self._note_latency(trip)
            if tier_refused(failure):
                failure.advise("the catalogue says `flex = true` for this model: leave it out if the model has none")
            if not failure.has_no_room:
                raise
            self._note_refusal(trip)
            return failure
        finally:
            trip.job, trip.timeout = asked, None
        counts.add("flex_calls_total", "answered")
        if trip.tier == FLEX:
            self._note_latency(trip)
        return answer

    async def _ask_standard(self, trip: Trip, down: Down) -> Answer:
        trip.tier = "standard"
        answer = await down(trip)
        now = self._now()
        self._speeds.note(trip.route.alias, latency_s=now - trip.called_at, usage=None, now=now)
        return answer

    def _has_time(self, trip: Trip, *, in_s: float = 0.0) -> bool:
        """Whether the flex tier may be asked `in_s` seconds from now."""
        model, options = trip.route.model, trip.job.options
        if not model.flex or not self._policy.may_wait(trip.job):
            return False
        begins_at, until = self._now() + in_s, trip.wait_until
        if until is None or options.deadline_at is None:
            return trip.no_room_since is None or begins_at - trip.no_room_since < self._policy.patience_s
        return begins_at + self._reserve_s(trip.route.alias, model) + self._needs_s(trip) <= until

    def _reserve_s(self, alias: str, model: Model) -> float:
        """What a flex call is left."""
        stated_s, latest = model.timeout.flex.total_s, self._latest.get(alias)
        if latest is None or latest.p95_s is None or self._now() - latest.noted_at > FRESH_S:
            return stated_s
        return min(stated_s, max(RESERVED * latest.p95_s, latest.longest_s))

    def _timeout(self, trip: Trip) -> Timeout:
        """Of a flex call. Where it may be made again, it ends while the standard tier has its time still."""
        stated, until = trip.route.model.timeout.flex, trip.wait_until
        asked = trip.job.options.repeat_timeouts
        if until is None or not (trip.route.repeat_timeouts if asked is None else asked):
            return stated
        left_s = until - self._needs_s(trip) - self._now()
        if left_s >= stated.total_s:
            return stated
        return stated.within(STEP ** math.floor(math.log(max(1.0, left_s), STEP)))

    def _note_latency(self, trip: Trip) -> None:
        alias = trip.route.alias
        latest = self._latest.get(alias)
        if latest is None:
            if len(self._latest) >= MOST_MODELS:
                self._latest.clear()
            latest = self._latest[alias] = Latest()
        now = self._now()
        latest.note(now - trip.called_at, now=now)

    def _needs_s(self, trip: Trip) -> float:
        """What the standard tier has to be left."""
        route = trip.route
        latency_s = self._speeds.latency_s(route.alias, now=self._now())
        needs_s = NEEDS_S if latency_s is None else MARGIN_S + LATENCIES * latency_s
        keys = self._keys_of(route.provider)
        return needs_s + self._limits.expected_wait_s(route.model, keys, trip.job.options.priority)

    def _pause_s(self, trip: Trip, refusal: Failure) -> float:
        ceiling_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(trip.no_room - 1, 16))
        asked_s = min(LONGEST_PAUSE_S, refusal.retry_after_s or 0.0)
        return max(asked_s, self._rng.uniform(ceiling_s / 2, ceiling_s))

    async def _wait(self, pause_s: float) -> None:
        if self._park_after_s is not None and pause_s > self._park_after_s:
            raise Parked(self._now() + pause_s, "the provider's flex tier has no room", keeps_lead=False)
        await self._sleep(pause_s)

    def _note_refusal(self, trip: Trip) -> None:
        """Of all refusals the history shows the last, or they would push out what was paid for."""
        counts.add("flex_calls_total", "no_room")
        trip.no_room += 1
        trip.no_room_since = self._now() if trip.no_room_since is None else trip.no_room_since
        *before, last = trip.failed
        last = replace(last, message=f"{last.message}; refusals so far: {trip.no_room}", next=AGAIN)
        trip.failed = [*(attempt for attempt in before if attempt.next != AGAIN), last]


def _note_change(trip: Trip) -> None:
    counts.add("flex_calls_total", "changed")
    trip.failed[-1] = replace(trip.failed[-1], next="the standard tier: no time is left to wait for room")


def _in_tier(job: PromptJob) -> PromptJob:
    return replace(job, body={**job.body, "service_tier": FLEX})
