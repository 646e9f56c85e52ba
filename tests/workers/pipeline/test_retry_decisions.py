"""The schedule of retries, on a virtual clock."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.pipeline.retry_policy import GiveUp, Retry, RetryPolicy
from workers.prompt.failure import Failure


class Dice(Random):
    """Always rolls this share of the range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


POLICY = RetryPolicy(max_attempts=10, base_s=1.0, cap_s=60.0)
RETRYABLE = Failure("server_error", "x", retryable=True)


def waits(policy: RetryPolicy, failure: Failure, *, share: float) -> list[float]:
    """Every wait until the policy gives up."""
    found: list[float] = []
    while True:
        decision = policy.decide(failure, attempt=len(found) + 1, now=0.0, deadline_at=None, rng=Dice(share))
        if isinstance(decision, GiveUp):
            assert decision.reason == "attempts"
            return found
        found.append(decision.after_s)


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    assert waits(POLICY, RETRYABLE, share=1.0) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_full_jitter_reaches_down_to_nothing() -> None:
    assert waits(POLICY, RETRYABLE, share=0.0) == [0.0] * 9


def test_one_counter_serves_every_cause() -> None:
    policy = RetryPolicy(max_attempts=3)
    causes = [Failure(code, "x", retryable=True) for code in ("rate_limited", "timeout", "connection")]
    decisions = [
        policy.decide(cause, attempt=n, now=0.0, deadline_at=None, rng=Random(1)) for n, cause in enumerate(causes, 1)
    ]
    assert [type(decision) for decision in decisions] == [Retry, Retry, GiveUp]


def test_what_cant_succeed_is_not_tried_again() -> None:
    failure = Failure("auth", "x")
    assert POLICY.decide(failure, attempt=1, now=0.0, deadline_at=None, rng=Random(1)) == GiveUp("fatal")


def test_the_jobs_own_number_of_attempts_wins() -> None:
    decision = POLICY.decide(RETRYABLE, attempt=1, max_attempts=1, now=0.0, deadline_at=None, rng=Random(1))
    assert decision == GiveUp("attempts")


@pytest.mark.parametrize(("asked", "has"), [(None, 4), (2, 2), (7, 7), (8, 8), (10**30, 8)])
def test_a_job_has_no_more_attempts_than_the_operator_permits(asked: int | None, has: int) -> None:
    policy = RetryPolicy(max_attempts=4, attempts_cap=8)
    decisions = [
        policy.decide(RETRYABLE, attempt=n, max_attempts=asked, now=0.0, deadline_at=None, rng=Dice(0.0))
        for n in (has - 1, has)
    ]
    assert decisions == [Retry(0.0), GiveUp("attempts")]


def test_the_operators_own_number_of_attempts_is_not_capped() -> None:
    assert RetryPolicy(max_attempts=30, attempts_cap=8).attempts(None) == 30


@pytest.mark.parametrize(
    ("code", "was_sent", "permitted", "repeats"),
    [
        ("timeout", True, False, False),
        ("timeout", True, True, True),
        ("timeout", False, False, True),
        ("connection", True, False, True),
    ],
)
def test_only_a_time_out_that_may_be_paid_for_needs_permission(
    code: Any, was_sent: bool, permitted: bool, repeats: bool
) -> None:
    failure = Failure(code, "x", retryable=True, suspected_payment=was_sent)
    decision = POLICY.decide(failure, attempt=1, now=0.0, deadline_at=None, rng=Dice(0.0), repeat_timeouts=permitted)
    assert decision == (Retry(0.0) if repeats else GiveUp("payment"))


def test_a_wait_that_reaches_the_deadline_is_not_begun() -> None:
    dice = Dice(1.0)
    assert POLICY.decide(RETRYABLE, attempt=1, now=10.0, deadline_at=11.0, rng=dice) == GiveUp("deadline")
    assert POLICY.decide(RETRYABLE, attempt=1, now=10.0, deadline_at=11.1, rng=dice) == Retry(1.0)


@pytest.mark.parametrize("asked_s", [0.5, 7.0, 59.0])
def test_retry_after_is_a_floor(asked_s: float) -> None:
    failure = Failure("rate_limited", "x", retryable=True, retry_after_s=asked_s)
    assert waits(POLICY, failure, share=0.0) == [asked_s] * 9


def test_a_retry_after_above_the_cap_waits_for_the_cap() -> None:
    failure = Failure("rate_limited", "x", retryable=True, retry_after_s=3_600.0)
    assert waits(POLICY, failure, share=0.7) == [60.0] * 9


@given(
    attempt=st.integers(1, 10_000),
    asked_s=st.none() | st.floats(0, 1e9),
    seed=st.integers(),
    base_s=st.floats(0.001, 100),
    more_s=st.floats(0, 1e6),
    now=st.floats(0, 2e9),
    left_s=st.none() | st.floats(0, 1e6),
)
def test_every_wait_is_bounded(
    attempt: int, asked_s: float | None, seed: int, base_s: float, more_s: float, now: float, left_s: float | None
) -> None:
    policy = RetryPolicy(max_attempts=20_000, base_s=base_s, cap_s=base_s + more_s)
    failure = Failure("rate_limited", "x", retryable=True, retry_after_s=asked_s)
    deadline_at = None if left_s is None else now + left_s
    decision = policy.decide(failure, attempt=attempt, now=now, deadline_at=deadline_at, rng=Random(seed))
    if isinstance(decision, Retry):
        assert min(asked_s or 0.0, policy.cap_s) <= decision.after_s <= policy.cap_s
        assert deadline_at is None or now + decision.after_s < deadline_at
    else:
        assert decision == GiveUp("deadline")
