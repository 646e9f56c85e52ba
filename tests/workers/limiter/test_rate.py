"""The safe pace: for every limit and every way of counting, at every phase, with every jitter."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.catalog import Limits
from tests.support.examples import examples
from workers.limiter.cost import Cost
from workers.limiter.errors import TooLargeForLimit
from workers.limiter.rate import NETWORK_JITTER_S, TOKENS_USE_BY_S, Plan, plan
from workers.simulator.limits import Bucket, FixedWindow, SlidingLog


def dispatched(pace: Plan, *, seconds: float, seed: int, network_s: float) -> list[float]:
    """Arrivals of a schedule that runs at full pace, each as late as its slot and the network allow."""
    (requests,) = pace.dimensions
    rng = random.Random(seed)
    tat, arrivals = 1_000.0, []
    while tat < 1_000.0 + seconds:
        at = max(1_000.0, tat - (requests.burst - 1) / requests.rate_per_s)
        tat += 1 / requests.rate_per_s
        arrivals.append(at + rng.choice([0.0, pace.use_by_s]) + rng.choice([0.0, network_s]))
    return sorted(arrivals)


@settings(max_examples=examples(60), deadline=None)
@given(rpm=st.integers(2, 3_000), seed=st.integers(0, 10_000), phase_s=st.floats(0, 60))
@pytest.mark.parametrize("told", ["sliding", "fixed", "unknown"])
def test_windows_hold_at_every_phase(told: Any, rpm: int, seed: int, phase_s: float) -> None:
    pace = plan(Limits(rpm=rpm, algorithm=told))
    for meter in (SlidingLog(rpm), FixedWindow(rpm, phase_s=phase_s)):
        for at in dispatched(pace, seconds=150, seed=seed, network_s=NETWORK_JITTER_S):
            assert meter.wait_s(at, 1) == 0
            meter.take(at, 1)


@settings(max_examples=examples(60), deadline=None)
@given(rpm=st.integers(2, 12_000), seed=st.integers(0, 10_000))
@pytest.mark.parametrize(("told", "bucket_s"), [("bucket", 1.0), ("unknown", 1.0), ("unknown", 0.1)])
def test_buckets_hold(told: Any, bucket_s: float, rpm: int, seed: int) -> None:
    capacity = max(min(2.0, rpm / 60), rpm / 60 * bucket_s, 1.0)
    pace = plan(Limits(rpm=rpm, algorithm=told))
    meter = Bucket(rpm, capacity=capacity)
    for at in dispatched(pace, seconds=60, seed=seed, network_s=pace.use_by_s / 2):
        assert meter.wait_s(at, 1) == 0
        meter.take(at, 1)


@pytest.mark.parametrize("rpm", [600, 1_200, 12_000])
@pytest.mark.parametrize("algorithm", ["bucket", "sliding", "fixed", "unknown"])
def test_little_is_left_unused(rpm: int, algorithm: Any) -> None:
    (requests,) = plan(Limits(rpm=rpm, algorithm=algorithm)).dimensions
    assert requests.rate_per_s * 60 >= 0.985 * rpm


def test_one_request_a_second_forgives_the_network_40_ms() -> None:
    pace = plan(Limits(rpm=60, algorithm="bucket"))
    (requests,) = pace.dimensions
    meter = Bucket(60, capacity=1.0)
    for at in dispatched(pace, seconds=600, seed=1, network_s=0.04):
        assert meter.wait_s(at, 1) == 0
        meter.take(at, 1)
    assert requests.rate_per_s * 60 >= 0.92 * 60


@pytest.mark.parametrize("algorithm", ["sliding", "fixed", "unknown"])
def test_tokens_of_windows_are_kept_for_a_minute_and_the_jitter(algorithm: Any) -> None:
    pace = plan(Limits(rpm=600, tpm=60_000, algorithm=algorithm), organisation=Limits(tpm=90_000), keys=2)
    requests, tokens, above = pace.dimensions
    assert requests.span_s == 0
    assert tokens.span_s == above.span_s == 60.0 + TOKENS_USE_BY_S + NETWORK_JITTER_S
    assert tokens.rate_per_s * tokens.span_s == pytest.approx(60_000)
    assert pace.use_by_s <= TOKENS_USE_BY_S


@pytest.mark.covers("catalog", "limits.algorithm")
def test_a_bucket_of_tokens_needs_no_memory() -> None:
    (tokens,) = plan(Limits(tpm=60_000, algorithm="bucket")).dimensions
    assert tokens.span_s == 0


def test_a_request_above_a_minute_s_tokens_is_refused() -> None:
    pace = plan(Limits(tpm=30_000, input_tpm=20_000))
    pace.check(Cost(20_000, 10_000))
    with pytest.raises(TooLargeForLimit, match="at least 30001 tokens, but the limit is 30000 a minute"):
        pace.check(Cost(15_000, 15_001))
    with pytest.raises(TooLargeForLimit, match="at least 20001 input tokens"):
        pace.check(Cost(20_001, 0))


def test_only_a_stated_limit_refuses_and_only_what_is_certain() -> None:
    stated, told = Limits(tpm=30_000), Limits(tpm=1, input_tpm=1)
    told_too = plan(told, stated=stated)
    told_too.check(Cost(20_000, 10_000))
    with pytest.raises(TooLargeForLimit, match="limit is 30000"):
        told_too.check(Cost(20_000, 10_001))
    plan(told, stated=Limits()).check(Cost(10**9, 10**9))
    # What was estimated from the length may be as little as a token in twelve characters.
    plan(stated).check(Cost(90_001, 1_024, input_chars=360_000, answers=1))
    with pytest.raises(TooLargeForLimit, match="at least 30001 tokens"):
        plan(stated).check(Cost(90_003, 1_024, input_chars=360_001, answers=1))


def test_a_request_larger_than_a_limit_is_a_window_of_it() -> None:
    pace = plan(Limits(tpm=30_000, input_tpm=20_000, output_tpm=5_000))
    assert pace.within(Cost(50_000, 50_000)) == Cost(20_000, 5_000)
    assert pace.within(Cost(20_000, 5_000)) == Cost(20_000, 5_000)
    assert plan(Limits(tpm=1)).within(Cost(50, 50, 200, 1)) == Cost(1, 0, 200, 1)


def test_what_is_not_limited_costs_nothing() -> None:
    assert plan(Limits()).is_free
    assert plan(Limits()).unit_s(Cost(5, 5)) == 0.0
    assert not plan(Limits(rpd=100)).is_free
