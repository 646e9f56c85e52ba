"""Which calls are an outage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.breaker.window import BreakerPolicy, Window

POLICY = BreakerPolicy(failures=5, window_s=30.0)


class Calls:
    """A window, and the calls that it sees one after the other."""

    def __init__(self, policy: BreakerPolicy = POLICY) -> None:
        self.window = Window(policy)
        self.now, self.answered, self.jobs = 1_000.0, 0, 0

    def fail(self, count: int = 1, *, every_s: float = 0.0, job: str | None = None) -> None:
        for _ in range(count):
            self.now += every_s
            self.jobs += 1
            self.window.fail(job or f"job-{self.jobs}", self.now, has_status=True)

    def answer(self, count: int, *, every_s: float = 0.0) -> None:
        for _ in range(count):
            self.now += every_s
            self.answered += 1
            self.window.roll(self.answered, self.now)

    @property
    def is_outage(self) -> bool:
        return self.window.is_outage(self.now)


def test_five_jobs_that_fail_are_an_outage() -> None:
    calls = Calls()
    calls.fail(4, every_s=1.0)
    assert not calls.is_outage
    calls.fail()
    assert calls.is_outage


def test_one_job_counts_once() -> None:
    calls = Calls()
    calls.fail(100, job="poison")
    assert not calls.is_outage


def test_failures_that_are_far_apart_are_none() -> None:
    calls = Calls()
    calls.fail(20, every_s=8.0)
    assert not calls.is_outage


@pytest.mark.parametrize("answers", [1_000, 100_000])
def test_answers_of_just_before_hide_an_outage_for_seconds_only(answers: int) -> None:
    calls = Calls()
    calls.answer(answers, every_s=10.0 / answers)
    calls.fail(5)
    assert not calls.is_outage, "five of very many"
    calls.fail(5, every_s=0.5)
    assert calls.is_outage


def test_a_share_below_half_is_no_outage_at_any_rate() -> None:
    for every_s in (0.01, 0.3, 1.0):
        calls = Calls()
        for _ in range(200):
            calls.answer(3, every_s=every_s)
            calls.fail(every_s=every_s)
            assert not calls.is_outage


def test_with_no_failures_wanted_it_never_opens() -> None:
    calls = Calls(BreakerPolicy(failures=0))
    calls.fail(100)
    assert not calls.is_outage


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=60))
def test_fewer_failures_than_wanted_or_than_answers_are_none(calls_made: list[tuple[bool, float]]) -> None:
    calls = Calls()
    for is_failure, after_s in calls_made:
        calls.fail(every_s=after_s) if is_failure else calls.answer(1, every_s=after_s)
    failures = sum(is_failure for is_failure, _ in calls_made)
    if failures < POLICY.failures:
        assert not calls.is_outage
    if failures >= POLICY.failures and failures == len(calls_made) and calls.now - 1_000.0 < POLICY.window_s:
        assert calls.is_outage


def test_what_was_said_is_not_said_again() -> None:
    calls = Calls()
    calls.answer(3, every_s=1.0)
    calls.fail()
    assert calls.window.take_answered(calls.now) == [(2, 1), (1, 1), (0, 1)]
    assert calls.window.take_failing() == [("job-1", True)]
    assert not calls.window.has_answers_to_say and not calls.window.has_failures_to_say
    calls.answer(1)
    assert calls.window.take_answered(calls.now) == [(0, 1)]
