"""When to try again. Decides with values and does nothing itself: time and chance are arguments.

The rule, for the n-th failed attempt::

    ceiling  = min(cap_s, base_s * 2 ** (n - 1))
    floor    = min(cap_s, what the provider asked us to wait, or 0)
    after_s  = min(cap_s, floor + a random share of ceiling)        "full jitter"

So we never come back before the provider's `Retry-After`, except when it asks for more than `cap_s`: then the
job waits `cap_s` and takes its chance, because one answer's header must not hold a job for hours, and the call is no
attempt. One counter of attempts serves every cause of failure, and no wait reaches past the job's deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from random import Random

    from ..prompt.failure import Failure

__all__ = ["Decision", "GiveUp", "Retry", "RetryPolicy"]

# 2 ** 63 s is longer than any cap; a larger exponent only risks an overflow.
_MAX_DOUBLINGS = 63


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after this many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again. `deadline`: there would be time for more attempts if the job had more time.

    `payment`: the call timed out after it was sent, and nobody has permitted to pay for it again.
    """

    reason: Literal["fatal", "payment", "attempts", "deadline"]


Decision = Retry | GiveUp


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a job is tried; `max_attempts` counts the first attempt too.

    A job that asks for more attempts than `attempts_cap` gets that many.
    """

    max_attempts: int = 4
    attempts_cap: int = 20
    base_s: float = 1.0
    cap_s: float = 60.0

    def decide(
        self,
        failure: Failure,
        *,
        attempt: int,
        now: float,
        deadline_at: float | None,
        rng: Random,
        max_attempts: int | None = None,
        reserved: int = 0,
        repeat_timeouts: bool = False,
    ) -> Decision:
        """What follows the `attempt`-th failed attempt, counted from 1. `now` and `deadline_at`: epoch seconds.

        So many attempts of the job's are `reserved` for other models.
        """
        if not failure.retryable:
            return GiveUp("fatal")
        if failure.code == "timeout" and failure.suspected_payment and not repeat_timeouts:
            return GiveUp("payment")
        if attempt >= self.attempts(max_attempts) - reserved:
            return GiveUp("attempts")
        after_s = self._wait_s(failure.retry_after_s or 0.0, attempt=attempt, rng=rng)
        if deadline_at is not None and now + after_s >= deadline_at:
            return GiveUp("deadline")
        return Retry(after_s)

    def attempts(self, asked: int | None) -> int:
        """How many attempts a job has that asks for so many."""
        return self.max_attempts if asked is None else min(asked, max(self.attempts_cap, self.max_attempts))

    def is_postponed(self, failure: Failure) -> bool:
        """Whether the provider asks for more than our longest pause: that is no attempt of the job's."""
        return failure.code == "rate_limited" and (failure.retry_after_s or 0.0) > self.cap_s

    def _wait_s(self, asked_s: float, *, attempt: int, rng: Random) -> float:
        ceiling_s = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))
        floor_s = min(self.cap_s, asked_s)
        return min(self.cap_s, floor_s + rng.uniform(0.0, ceiling_s))
