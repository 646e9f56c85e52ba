"""What waiting jobs are told of their turns, and when parked ones come back. No clock but the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest

from config.catalog import Limits
from tasks.results import Usage
from workers.limiter.cost import Cost
from workers.limiter.estimate import Estimator
from workers.limiter.heard.pauses import Pauses
from workers.limiter.rate import plan
from workers.limiter.waiting.forecast import Forecast
from workers.limiter.waiting.wait_queue import Waiter, WaitQueue
from workers.prompt.parked import Parked

NOW_S = 1_000.0
TOKENS = plan(Limits(tpm=60_000, algorithm="bucket"))
REQUESTS = plan(Limits(rpm=600, algorithm="bucket"))


class Scene:
    """A line with its forecast, and an estimator that has learned so many answers of 200 tokens."""

    def __init__(self, *, answers: int = 0) -> None:
        self.queue: WaitQueue[Waiter] = WaitQueue()
        self.pauses, self.estimator = Pauses(), Estimator()
        for _ in range(answers):
            self.estimator.learn(Cost(), Usage(output_tokens=200))
        self.forecast = Forecast(self.queue, self.pauses, self.estimator, now=lambda: NOW_S, time=lambda: 0.0)

    def wait(self, cost: Cost, *, count: int = 1) -> None:
        for _ in range(count):
            self.queue.join(Waiter(cost, asyncio.get_running_loop().create_future()))

    def returns_s(self, count: int, *, wait_s: float, gap_s: float) -> Iterator[float]:
        """When so many jobs come back that are parked now, in seconds from now."""
        for _ in range(count):
            parked = self.forecast.parked(wait_s, 5.0, gap_s=gap_s)
            assert isinstance(parked, Parked) and parked.gap_s == gap_s
            yield parked.until_s - NOW_S


async def test_a_turn_takes_the_average_answer_not_what_is_reserved() -> None:
    scene = Scene(answers=100)
    scene.wait(Cost(100, 900, 400, 1))
    per_s = TOKENS.dimensions[0].rate_per_s
    assert scene.forecast.turn_s(TOKENS, live=1) == pytest.approx(300 / per_s)
    assert scene.forecast.turn_s(TOKENS, live=4) == pytest.approx(4 * 300 / per_s)


async def test_before_the_first_answers_slow_turns_tell_nothing() -> None:
    scene = Scene()
    scene.wait(Cost(100, 1_024, 400, 1))
    for at in range(5):
        scene.forecast.note_turn(float(at), is_last=False)
    assert scene.forecast.turn_s(TOKENS, live=1) == pytest.approx(164 / TOKENS.dimensions[0].rate_per_s)


async def test_turns_that_come_more_slowly_than_planned_count() -> None:
    scene = Scene()
    for at in range(100):
        scene.forecast.note_turn(float(at), is_last=False)
    assert scene.forecast.turn_s(REQUESTS, live=1) == pytest.approx(1.0, rel=0.01)


async def test_parked_jobs_come_back_before_their_turns_as_if_of_one() -> None:
    scene = Scene()
    gap_s = scene.forecast.gap_s(REQUESTS, live=4)
    assert gap_s == pytest.approx(0.75 * 0.1, rel=0.01)
    returns = list(scene.returns_s(50, wait_s=20.0, gap_s=gap_s))
    assert returns[0] == 0.75 * 20.0 - 2.5
    assert all(later - earlier == pytest.approx(gap_s) for earlier, later in pairwise(returns))


async def test_with_only_calls_in_flight_limited_turns_tell_the_gap() -> None:
    scene = Scene()
    free = plan(Limits(max_in_flight=10))
    assert scene.forecast.gap_s(free, live=2) == 0
    for at in range(100):
        scene.forecast.note_turn(float(at), is_last=False)
    assert scene.forecast.gap_s(free, live=2) == pytest.approx(0.75 * 0.5, rel=0.01)


async def test_nobody_is_parked_for_very_long_nor_into_a_pause() -> None:
    scene = Scene()
    returns = list(scene.returns_s(5, wait_s=10_000.0, gap_s=100.0))
    assert returns == [150.0, 250.0, 150.0, 250.0, 150.0]
    paused = Scene()
    paused.pauses.note(2, 60.0)
    assert list(paused.returns_s(1, wait_s=10.0, gap_s=1.0)) == [60.0]


def test_a_waiting_reservation_shrinks_and_never_grows() -> None:
    estimator = Estimator()
    guess = estimator.cost(input_chars=400, answers=2)
    assert guess.output_tokens == 2_048
    assert estimator.typical(guess).output_tokens == 128
    for _ in range(100):
        estimator.learn(Cost(), Usage(output_tokens=200))
    assert estimator.renewed(guess).output_tokens == 600
    assert estimator.typical(guess).output_tokens == 400
    capped = estimator.cost(input_chars=400, max_tokens=50)
    assert estimator.renewed(capped) == estimator.typical(capped) == capped
    stated = Cost(10, 9_000)
    assert estimator.renewed(stated) == estimator.typical(stated) == stated
