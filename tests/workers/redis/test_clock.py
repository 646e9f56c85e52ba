"""Redis's clock as a worker knows it, while somebody sets it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.redis.clock import RedisClock

EPOCH_S = 1_700_000_000.0


@dataclass
class Machines:
    """A worker's steady clock, and a Redis's clock that may be set."""

    steady_s: float = 5_000.0
    redis_ahead_s: float = EPOCH_S

    def __post_init__(self) -> None:
        self.clock = RedisClock(steady=lambda: self.steady_s, wall=lambda: 0.0)

    @property
    def redis_s(self) -> float:
        return self.steady_s + self.redis_ahead_s

    def beat(self, *, to_s: float = 0.001, back_s: float = 0.001) -> None:
        """Ask Redis for its time."""
        asked_at = self.clock.asked()
        self.steady_s += to_s
        shown = self.redis_s
        self.steady_s += back_s
        self.clock.learn(shown, asked_at=asked_at)

    def live(self, seconds: float, *, every_s: float = 1.5) -> None:
        while seconds > 0:
            self.steady_s += min(every_s, seconds)
            seconds -= every_s
            self.beat()


@pytest.fixture
def machines() -> Machines:
    machines = Machines()
    machines.beat()
    return machines


def test_it_shows_what_redis_shows_and_stamps_are_themselves(machines: Machines) -> None:
    machines.live(100)
    assert machines.clock() == pytest.approx(machines.redis_s, abs=0.01)
    assert machines.clock.from_redis(EPOCH_S) == EPOCH_S
    assert machines.clock.to_redis(EPOCH_S) == EPOCH_S
    assert machines.clock.from_redis(machines.redis_s + 30) <= machines.clock()


@pytest.mark.parametrize("by", [3600.0, -600.0, 5.0, -5.0, 1e9])
def test_it_runs_on_while_redis_clock_is_set(machines: Machines, by: float) -> None:
    submitted, before = machines.redis_s, machines.clock()
    machines.live(20)
    machines.redis_ahead_s += by
    machines.live(20)
    assert machines.clock() - before == pytest.approx(40, abs=0.2)
    assert machines.clock.redis_s() == pytest.approx(machines.redis_s, abs=0.01)
    assert machines.clock.to_redis(machines.clock()) == pytest.approx(machines.redis_s, abs=0.01)
    age_s = machines.clock() - machines.clock.from_redis(submitted)
    assert 0 <= age_s <= 40.2
    if by > 0 or by < -40:
        assert age_s == pytest.approx(40, abs=0.2)
    after = machines.redis_s
    machines.live(20)
    assert machines.clock() - machines.clock.from_redis(after) == pytest.approx(20, abs=0.2)


def test_a_clock_that_is_set_and_set_right_again_leaves_no_trace(machines: Machines) -> None:
    submitted = machines.redis_s
    for by in (3600, -3600):
        machines.redis_ahead_s += by
        machines.live(10)
    assert machines.clock() - machines.clock.from_redis(submitted) == pytest.approx(20, abs=0.2)


def test_a_reply_that_is_read_late_is_no_jump(machines: Machines) -> None:
    machines.beat(back_s=60)
    machines.beat(to_s=60)
    machines.beat()
    assert machines.clock() == pytest.approx(machines.redis_s, abs=0.5)
    assert machines.clock.to_redis(0.0) == 0.0


def test_slewing_is_followed(machines: Machines) -> None:
    for _ in range(2_000):
        machines.redis_ahead_s += 0.0007
        machines.live(1.5)
    assert machines.clock() == pytest.approx(machines.redis_s, abs=0.1)
    assert machines.clock.to_redis(0.0) == 0.0


@given(jumps=st.lists(st.floats(-1e6, 1e6), max_size=20), age_s=st.floats(0, 100))
def test_no_job_is_older_than_it_is_nor_from_the_future(jumps: list[float], age_s: float) -> None:
    machines = Machines()
    machines.beat()
    stamp, began = machines.redis_s, machines.steady_s
    machines.live(age_s)
    for by in jumps:
        machines.redis_ahead_s += by
        machines.live(3)
    newest = machines.clock() - machines.clock.from_redis(machines.redis_s)
    assert 0 <= newest <= 0.5
    assert machines.clock() - machines.clock.from_redis(stamp) >= 0
    if len(jumps) <= 1:
        assert machines.clock() - machines.clock.from_redis(stamp) <= machines.steady_s - began + 1.5
