"""No second call for what has been answered, or is being answered for an equal prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...answers import Digests, Flight, Follow
from ...prompt.failure import Failure
from ...prompt.parked import Parked
from ..costs import known_cost_usd

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...answers import Answers as Store
    from ...answers import Known
    from ...prompt.job import PromptJob
    from ...providers import Answer
    from ..trip import Down, Route, Shape, Trip

__all__ = ["Answers"]

FOLLOWS_S = 280.0
"""A job that waits for an equal one looks again after this at the latest; Redis says when, and that is earlier."""


class Answers:
    """Gives what an equal prompt was answered; of equal prompts under way, one is sent."""

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float | None,
        may_wait: Callable[[PromptJob], bool],
        now: Callable[[], float],
    ) -> None:
        """`ttl_s` is for jobs that ask for no cache time of their own. `may_wait`: whether a job may be sent by a flex
        tier. `now` gives epoch seconds.
        """
        self._store = store
        self._ttl_s = ttl_s
        self._now = now
        self.digest_of: Callable[[PromptJob, Route], str] = Digests(may_wait=may_wait).of
        """What equal prompts to a model have in common. On any thread."""

    def serves(self, shape: Shape) -> bool:
        return shape.caches

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        job, route = trip.job, trip.route
        ttl_s = job.options.cache_ttl_s or self._ttl_s
        if ttl_s is None:
            raise ValueError("a job without a cache time met this rung")
        found: Known | Flight | Follow | None = None
        if (digest := trip.digest) is None:
            digest = self.digest_of(job, route)
            data = self._store.at_hand(digest, ttl_s=ttl_s)
            found = None if data is None else self._store.opened(data)
        if found is None:
            asked = self._store.look(
                digest,
                job,
                ttl_s=ttl_s,
                followed=trip.followed,
                has_next=bool(trip.untried),
                redelivered=trip.redelivered,
            )
            if asked is None:
                return await down(trip)
            try:
                found = await asked
            except BaseException:
                self._store.give_up(asked)
                raise
            if found is None:
                return await down(trip)
        if isinstance(found, Follow):
            raise self._parked(trip, found)
        if not isinstance(found, Flight):
            trip.cached = found
            return found.answer
        try:
            answer = await down(trip)
        except Failure as failure:
            found.failed(failure, has_next=bool(trip.untried))
            raise
        except Parked as parked:
            parked.gap_s = 0.0  # the next of its lane may find an answer
            found.parked(parked)
            raise
        except BaseException:  # cancelled, its time is over, or a fault of ours: another may do better
            found.release()
            raise
        cost_usd = known_cost_usd(route.model, answer.usage, trip.tier)
        trip.priced = answer, cost_usd
        found.answered(answer, answered_by=trip.route.answered_by, cost_usd=cost_usd)
        return answer

    def _parked(self, trip: Trip, found: Follow) -> Parked:
        trip.followed = found.follows.token
        until_s = self._now() + FOLLOWS_S
        if (deadline_at := trip.job.options.deadline_at) is not None:
            until_s = min(until_s, deadline_at)
        return Parked(until_s, "the call for an equal prompt is under way", follows=found.follows)
