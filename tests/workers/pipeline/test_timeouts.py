"""Time-outs by how long the model's latest calls took."""

from __future__ import annotations

from typing import Any

import pytest

from config.catalog.tables import Timeout
from workers.pipeline.rungs.patience.latest import LEARN_FROM
from workers.pipeline.rungs.patience.timeouts import Latencies, Timeouts
from workers.pipeline.trip import Shape

STATED = Timeout(total_s=600, times_p95=3, least_s=5)


def after(*took_s: float, stated: Timeout = STATED, times: float = 3.0) -> float | None:
    latencies = Latencies(stated, times)
    for each in took_s:
        latencies.note(each)
    return None if latencies.timeout is None else latencies.timeout.total_s


def test_too_few_calls_say_nothing() -> None:
    assert after(*[10.0] * (LEARN_FROM - 1)) is None
    assert after(*[10.0] * LEARN_FROM) == pytest.approx(30, rel=0.1)


def test_it_is_the_slow_calls_that_count() -> None:
    assert after(*[*[10.0] * 45, *[100.0] * 5]) == pytest.approx(300, rel=0.1)
    assert after(*[*[10.0] * 48, *[100.0] * 2]) == pytest.approx(30, rel=0.1)


@pytest.mark.parametrize(("took_s", "total_s"), [(0.01, 5.0), (500.0, 600.0)])
def test_it_stays_within_the_bounds(took_s: float, total_s: float) -> None:
    assert after(*[took_s] * LEARN_FROM) == total_s


def test_a_least_time_beyond_the_total_is_no_more_than_that() -> None:
    assert after(*[0.1] * LEARN_FROM, stated=Timeout(total_s=2, times_p95=3, least_s=5)) == 2


def test_what_was_long_ago_is_forgotten() -> None:
    assert after(*[100.0] * 200, *[1.0] * 200) == 5.0


def test_few_different_time_outs_occur() -> None:
    latencies, seen = Latencies(STATED, 3.0), set()
    for n in range(5_000):
        latencies.note(2.0 + n % 997 / 10)
        if latencies.timeout is not None:
            seen.add(latencies.timeout.total_s)
    assert 1 < len(seen) < 55, "the HTTP session keeps a timer for each"


def test_a_model_that_has_become_slow_gets_its_time_back() -> None:
    latencies = Latencies(STATED, 3.0)
    for _ in range(200):
        latencies.note(2.0)
    given_up = 0
    for _ in range(200):
        limit_s = latencies.timeout.total_s if latencies.timeout else 600.0
        given_up += limit_s < 60
        latencies.note(min(60.0, limit_s))
    assert given_up <= 60, "20 calls for each step by the factor of 3"
    assert latencies.timeout is not None and latencies.timeout.total_s > 60


@pytest.mark.covers("catalog", "timeout.times_p95", "timeout.least_s")
@pytest.mark.parametrize(("own", "calls"), [(None, 2), (False, 1)])
async def test_a_hopeless_call_is_given_up_and_made_again(
    pipeline_to: Any, chat_job: Any, simulate: Any, own: bool | None, calls: int
) -> None:
    simulator = await simulate()
    timeout = {"total_s": 3, "times_p95": 3, "least_s": 0.3}
    async with pipeline_to(simulator.url, timeout=timeout, repeat_timeouts=True, real_time=True) as pipeline:
        for n in range(LEARN_FROM):
            assert (await pipeline.run(chat_job(f"job-{n}"))).ok
        simulator.strike({"hang": 1.0})
        result = await pipeline.run(chat_job(max_attempts=2, repeat_timeouts=own))
    assert (result.error.code, result.attempts) == ("timeout", calls)
    took_s = [attempt.duration_s for attempt in result.failed_attempts]
    assert all(0.3 <= each < 2.5 for each in took_s) if calls == 2 else took_s[0] >= 3
    assert result.suspected_double_payment == (calls == 2)


@pytest.mark.parametrize(("timeout", "is_there"), [({"times_p95": 3}, True), ({}, False)])
async def test_what_is_off_is_not_on_the_ladder(
    pipeline_to: Any, chat_job: Any, timeout: dict[str, Any], is_there: bool
) -> None:
    async with pipeline_to("http://127.0.0.1:1/v1", timeout=timeout, repeat_timeouts=True) as pipeline:
        rungs = pipeline.ladder(Shape.of(chat_job())).rungs
    assert any(isinstance(rung, Timeouts) for rung in rungs) == is_there
