"""The three algorithms on a virtual clock: what they let through, and that their waits are true."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.simulator.limits import (
    ALGORITHMS,
    WINDOW_S,
    Algorithm,
    Allowance,
    Bucket,
    FixedWindow,
    Meter,
    SlidingLog,
    reset_text,
)

# Many calls crowd together, some lie a window apart.
gaps_s = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 90))
offers = st.lists(st.tuples(gaps_s, st.integers(1, 12)), min_size=1, max_size=120)
limits = st.integers(12, 40)


def granted(meter: Meter, offered: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """(instant, cost) of what the meter lets through."""
    now_s, grants = 1_000.0, []
    for gap_s, cost in offered:
        now_s += gap_s
        if meter.wait_s(now_s, cost) == 0:
            meter.take(now_s, cost)
            grants.append((now_s, cost))
    return grants


def largest_sum(grants: list[tuple[float, int]], *, span_s: float) -> int:
    """The most that falls into any half-open span of this length."""
    return max(
        (sum(cost for at_s, cost in grants if since_s <= at_s < since_s + span_s) for since_s, _ in grants),
        default=0,
    )


@given(limit=limits, offered=offers)
def test_sliding_never_lets_more_through_in_any_minute(limit: int, offered: list[tuple[float, int]]) -> None:
    assert largest_sum(granted(SlidingLog(limit), offered), span_s=WINDOW_S) <= limit


@given(limit=limits, offered=offers, phase_s=st.floats(0, WINDOW_S))
def test_fixed_never_lets_more_through_between_boundaries(
    limit: int, offered: list[tuple[float, int]], phase_s: float
) -> None:
    windows: dict[int, int] = {}
    for at_s, cost in granted(FixedWindow(limit, phase_s=phase_s), offered):
        window = math.floor((at_s - phase_s) / WINDOW_S)
        windows[window] = windows.get(window, 0) + cost
    assert max(windows.values(), default=0) <= limit


def test_fixed_lets_twice_the_limit_through_around_a_boundary() -> None:
    grants = granted(FixedWindow(10, phase_s=0.0), [(19.9, 10), (0.1, 10), (0.1, 1)])  # 1,020 s is a boundary
    assert grants == [(1_019.9, 10), (1_020.0, 10)]


@given(limit=limits, capacity=st.integers(12, 20), offered=offers)
def test_bucket_conforms_to_its_rate_and_capacity(limit: int, capacity: int, offered: list[tuple[float, int]]) -> None:
    grants = granted(Bucket(limit, capacity=capacity), offered)
    for first, (since_s, _) in enumerate(grants):
        total = 0
        for at_s, cost in grants[first:]:
            total += cost
            assert total <= capacity + (at_s - since_s) * limit / WINDOW_S + 1e-6


def test_a_cost_above_the_capacity_passes_when_full_and_is_paid() -> None:
    bucket = Bucket(600, capacity=10)
    assert bucket.wait_s(0, 100) == 0
    bucket.take(0, 100)
    assert bucket.remaining(0) == 0
    assert bucket.wait_s(0, 1) == pytest.approx((90 + 1) / 10)
    assert bucket.reset_s(0) == pytest.approx(10)


@given(algorithm=st.sampled_from(ALGORITHMS), limit=limits, offered=offers, cost=st.integers(1, 12))
def test_a_refused_caller_gets_in_after_the_told_wait_not_sooner(
    algorithm: Algorithm, limit: int, offered: list[tuple[float, int]], cost: int
) -> None:
    meters: dict[Algorithm, Meter] = {
        "bucket": Bucket(limit, capacity=12),
        "sliding": SlidingLog(limit),
        "fixed": FixedWindow(limit, phase_s=7.0),
    }
    meter = meters[algorithm]
    granted(meter, offered)
    now_s = 1_000.0 + sum(gap_s for gap_s, _ in offered)
    wait_s = meter.wait_s(now_s, cost)
    if wait_s > 0.002:
        assert meter.wait_s(now_s + wait_s - 0.001, cost) > 0
    assert meter.wait_s(now_s + wait_s + 0.001, cost) == 0


@given(algorithm=st.sampled_from(ALGORITHMS), offered=offers)
def test_everything_is_free_again_after_the_reset_time(algorithm: Algorithm, offered: list[tuple[float, int]]) -> None:
    meters: dict[Algorithm, Meter] = {
        "bucket": Bucket(30, capacity=12),
        "sliding": SlidingLog(30),
        "fixed": FixedWindow(30),
    }
    meter = meters[algorithm]
    whole = meter.remaining(0.0)
    granted(meter, offered)
    now_s = 1_000.0 + sum(gap_s for gap_s, _ in offered)
    assert meter.remaining(now_s + meter.reset_s(now_s) + 0.001) == whole


@pytest.mark.parametrize("meter", [Bucket(60, capacity=1), SlidingLog(60), FixedWindow(60)], ids=ALGORITHMS)
def test_what_is_larger_than_the_limit_never_fits(meter: Meter) -> None:
    assert meter.wait_s(0.0, 61) == math.inf


def test_a_call_refused_for_its_tokens_does_not_cost_a_request() -> None:
    allowance = Allowance.of(algorithm="sliding", rpm=2, tpm=100)
    assert allowance.admit(0, tokens=90) is None
    refusal = allowance.admit(10, tokens=20)
    assert refusal is not None
    assert (refusal.dimension, refusal.limit, refusal.remaining, refusal.wait_s) == ("tokens", 100, 10, 50)
    assert allowance.admit(10, tokens=10) is None
    assert (refused := allowance.admit(10, tokens=0)) is not None
    assert refused.dimension == "requests"


def test_the_headers_are_openais() -> None:
    allowance = Allowance.of(algorithm="fixed", rpm=500, tpm=30_000, phase_s=0)
    allowance.admit(1, tokens=1_000)
    assert allowance.headers(1) == {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "59s",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29000",
        "x-ratelimit-reset-tokens": "59s",
    }


def test_without_limits_everything_passes_and_no_header_is_sent() -> None:
    allowance = Allowance.of(algorithm="bucket", rpm=None, tpm=None)
    assert allowance.admit(0, tokens=10**9) is None
    assert allowance.headers(0) == {}


@pytest.mark.parametrize(
    ("duration_s", "text"), [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (4503, "75m3s")]
)
def test_durations_are_written_as_openai_does(duration_s: float, text: str) -> None:
    assert reset_text(duration_s) == text
