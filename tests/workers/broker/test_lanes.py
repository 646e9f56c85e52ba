"""Jobs that are told to wait because the one before them was. Times are ms of any clock."""

from __future__ import annotations

import pytest

from workers.broker.lanes import FRESH_MS, FURTHEST_MS, MOST_LANES, Lanes
from workers.broker.messages import read

from .broker import message

NOW_MS = 1_000_000


@pytest.fixture
def lanes() -> Lanes:
    """The limiter has told two jobs of lane "a" to come back, and the next ones to come 20 ms apart."""
    lanes = Lanes()
    for until_ms in (NOW_MS + 5_000, NOW_MS + 5_020):
        lanes.parked("a", until_ms, gap_ms=20, now_ms=NOW_MS)
    return lanes


def test_those_behind_come_back_one_by_one_at_the_limiters_pace(lanes: Lanes) -> None:
    assert [lanes.turn_ms("a", now_ms=NOW_MS) for _ in range(3)] == [NOW_MS + 5_040, NOW_MS + 5_060, NOW_MS + 5_080]


def test_other_lanes_are_not_held_up(lanes: Lanes) -> None:
    assert lanes.turn_ms("b", now_ms=NOW_MS) is None


def test_where_the_limiter_knows_no_pace_each_job_asks_it() -> None:
    lanes = Lanes()
    lanes.parked("a", NOW_MS + 5_000, gap_ms=0, now_ms=NOW_MS)
    assert lanes.turn_ms("a", now_ms=NOW_MS) is None


def test_the_latest_pace_counts_and_fractions_add_up(lanes: Lanes) -> None:
    lanes.parked("a", NOW_MS + 5_040, gap_ms=2.5, now_ms=NOW_MS + 500)
    assert [lanes.turn_ms("a", now_ms=NOW_MS + 500) for _ in range(4)] == [
        *(NOW_MS + 5_042, NOW_MS + 5_045, NOW_MS + 5_047, NOW_MS + 5_050)
    ]


def test_after_a_second_the_next_is_started_and_asks_again(lanes: Lanes) -> None:
    assert lanes.turn_ms("a", now_ms=NOW_MS + FRESH_MS) is not None
    assert lanes.turn_ms("a", now_ms=NOW_MS + FRESH_MS + 1) is None


def test_no_turn_is_given_twice_when_an_earlier_one_is_given(lanes: Lanes) -> None:
    """It counts only the jobs that it was asked about."""
    given = [lanes.turn_ms("a", now_ms=NOW_MS) for _ in range(50)]
    lanes.parked("a", NOW_MS + 5_040, gap_ms=20, now_ms=NOW_MS + 500)
    later = lanes.turn_ms("a", now_ms=NOW_MS + 500)
    assert later is not None and given[-1] is not None and later > given[-1]


def test_a_turn_that_is_very_far_away_is_brought_nearer(lanes: Lanes) -> None:
    lanes.parked("a", NOW_MS + FURTHEST_MS, gap_ms=20, now_ms=NOW_MS)
    assert lanes.turn_ms("a", now_ms=NOW_MS) == NOW_MS + FURTHEST_MS // 2


def test_lanes_that_nobody_speaks_of_are_forgotten(lanes: Lanes) -> None:
    later_ms = NOW_MS + FRESH_MS + 1
    for number in range(MOST_LANES):
        lanes.parked(f"lane {number}", later_ms, gap_ms=20, now_ms=later_ms)
    assert len(lanes._lanes) == MOST_LANES


@pytest.mark.parametrize(
    ("raw", "lane"),
    [
        (message("a", lane="normal m"), "normal m"),
        (message("a"), None),
        (message("a", lane=7), None),
        (message("a", lane="normal m")[:-1] + b', "promptmill": {"deliveries": 1, "suspected": 0}}', None),
        (message("a", lane="normal m")[:-1] + b', "promptmill": {"deliveries": 0, "suspected": 1}}', None),
    ],
    ids=["ours", "a stock producer's", "nonsense", "its worker died", "perhaps paid for"],
)
def test_only_a_job_that_never_began_waits_unstarted(raw: bytes, lane: str | None) -> None:
    assert read(raw).lane == lane


def test_after_redis_clock_was_set_back_the_next_asks_again(lanes: Lanes) -> None:
    assert lanes.turn_ms("a", now_ms=NOW_MS - 600_000) is None
