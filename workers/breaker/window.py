"""The recent calls of one process to one model, and whether they are an outage. No clock and no I/O.

The rule, for the last `failures` jobs that have failed within the window::

    span = since the first of them, at least LEAST_SPAN_S
    it is an outage if at least as many jobs failed in that span as calls were answered

So a provider that fails altogether is noticed within seconds, however many answers came just before, and a few failures
of many calls are none. A job counts once: one whose prompt always fails tells nothing of the provider.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["LEAST_SPAN_S", "BreakerPolicy", "Window"]

LEAST_SPAN_S = 2.0
"""Calls that fail in one moment are few beside those that are answered in the next."""

MOST_JOBS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens: `failures` jobs within `window_s`, 0: never. The first probe comes after `open_s`."""

    failures: int = 5
    window_s: float = 30.0
    open_s: float = 5.0


class Window:
    """What has become of the calls, and which of it Redis does not know yet. Instants are epoch seconds."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._failing: dict[str, float] = {}
        self._answered: deque[tuple[float, int]] = deque()
        self._unsaid_failing: dict[str, bool] = {}
        self._unsaid_answered: deque[tuple[float, int]] = deque()
        self._counted = 0

    @property
    def has_failures_to_say(self) -> bool:
        return bool(self._unsaid_failing)

    @property
    def has_answers_to_say(self) -> bool:
        return bool(self._unsaid_answered)

    def fail(self, job_id: str, now: float, *, has_status: bool) -> None:
        """A job's call has failed; `has_status`: by an answer of the provider's."""
        self._failing.pop(job_id, None)
        self._failing[job_id] = now
        if len(self._failing) > MOST_JOBS:
            del self._failing[next(iter(self._failing))]
        self._unsaid_failing[job_id] = has_status

    def roll(self, answered: int, now: float) -> None:
        """Up to now so many calls have been answered in all."""
        count, self._counted = answered - self._counted, answered
        if count:
            self._answered.append((now, count))
            self._unsaid_answered.append((now, count))
        for kept in (self._answered, self._unsaid_answered):
            while kept and kept[0][0] < now - self._policy.window_s:
                kept.popleft()

    def take_failing(self) -> list[tuple[str, bool]]:
        """The jobs that have failed, and whether the provider answered; from now on they count as said."""
        taken, self._unsaid_failing = list(self._unsaid_failing.items()), {}
        return taken

    def say_again(self, failing: list[tuple[str, bool]]) -> None:
        """These jobs count as not said."""
        self._unsaid_failing = {**dict(failing), **self._unsaid_failing}

    def take_answered(self, now: float) -> list[tuple[int, int]]:
        """How many calls were answered, by how many whole seconds ago; from now on they count as said."""
        by_age: dict[int, int] = {}
        for at, count in self._unsaid_answered:
            age = max(0, math.floor(now - at))
            by_age[age] = by_age.get(age, 0) + count
        self._unsaid_answered.clear()
        return list(by_age.items())

    def is_outage(self, now: float) -> bool:
        """Whether these calls, of this process alone, are one."""
        policy = self._policy
        failed = sorted(at for at in self._failing.values() if at > now - policy.window_s)
        if not policy.failures or len(failed) < policy.failures:
            return False
        begins = min(failed[-policy.failures], now - LEAST_SPAN_S)
        return sum(at >= begins for at in failed) >= sum(count for at, count in self._answered if at >= begins)

    def clear(self) -> None:
        """An outage has begun, or ended: what was before says nothing of what follows."""
        self._failing.clear()
        self._unsaid_failing.clear()
        self._answered.clear()
        self._unsaid_answered.clear()
