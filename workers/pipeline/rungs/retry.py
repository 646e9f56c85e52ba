"""Again, and when: `retry.RetryPolicy` decides, this waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...breaker import blames_provider
from ...prompt.failure import Failure
from ..retry_policy import GiveUp, Retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from ...providers import Answer
    from ..retry_policy import Decision, RetryPolicy
    from ..trip import Down, Shape, Trip

__all__ = ["Retries"]


class Retries:
    """Tries a job again while that may help. One counter of attempts serves every cause of failure."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: Random,
    ) -> None:
        """`now` gives epoch seconds; `sleep` takes seconds."""
        self._policy = policy
        self._now = now
        self._sleep = sleep
        self._rng = rng

    def serves(self, shape: Shape) -> bool:
        return True

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        while True:
            try:
                return await down(trip)
            except Failure as failure:
                if failure.unreachable:
                    raise  # it was no attempt
                if self._policy.is_postponed(failure):
                    trip.postponed += 1
                decision = self._decide(trip, failure)
                if await _outlasts(trip, failure, decision):
                    failure.outlasts = True
                    raise
                match decision:
                    case Retry() if failure.code == "rate_limited" and not failure.has_no_room:
                        pause_s = 0.0  # the limiter makes everybody wait, and this job in its turn
                    case Retry(after_s):
                        pause_s = after_s
                    case GiveUp("deadline") if not trip.untried:
                        raise _no_time_left(failure) from None
                    case GiveUp("payment"):
                        raise _not_repeated(failure) from None
                    case GiveUp():
                        raise
            await self._sleep(pause_s)

    def _decide(self, trip: Trip, failure: Failure) -> Decision:
        options = trip.job.options
        asked = options.repeat_timeouts
        return self._policy.decide(
            failure,
            attempt=max(1, trip.spent),
            max_attempts=options.max_attempts,
            reserved=trip.untried,
            now=self._now(),
            deadline_at=trip.wait_until,
            rng=self._rng,
            repeat_timeouts=trip.route.repeat_timeouts if asked is None else asked,
        )


async def _outlasts(trip: Trip, failure: Failure, decision: Decision) -> bool:
    """Whether the failure is an outage's, which is waited for above, whatever the job's attempts."""
    if isinstance(decision, GiveUp) and decision.reason in {"fatal", "payment"}:
        return False
    if not blames_provider(failure):
        return False
    health = trip.route.health
    if isinstance(decision, GiveUp) and not health.outages:
        await health.judged()  # it may be the failure that shows the outage
    return bool(health.outages)


def _no_time_left(last: Failure) -> Failure:
    return Failure(
        "expired",
        f"the job's deadline leaves no time to try again; the last: {last.code}: {last.message}",
        http_status=last.http_status,
        provider_body=last.provider_body,
    )


def _not_repeated(timeout: Failure) -> Failure:
    return Failure(
        "timeout",
        f"{timeout.message}; the call may have been paid for, so it was not repeated: raise the model's `timeout` in "
        "the catalogue, or set `repeat_timeouts` (provider, model or job) to have such calls repeated",
        http_status=timeout.http_status,
        retryable=True,
        suspected_payment=True,
    )
