"""What a job is told whose deadline has passed: when that was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.virtual_time import run_virtually
from workers.pipeline.rungs.deadline import Deadline
from workers.pipeline.trip import Trip
from workers.prompt.failure import Failure


def told(trip: Trip, *, attempts: int = 0, was_cut: bool = False) -> str:
    """By a job that makes so many calls, and then sleeps."""

    async def down(trip: Trip) -> Any:
        trip.attempts = attempts
        try:
            await asyncio.sleep(3_600)
        finally:
            trip.was_cut = was_cut

    async def main() -> None:
        await Deadline()(trip, down)

    with pytest.raises(Failure) as caught:
        run_virtually(main())
    assert caught.value.code == "expired"
    return str(caught.value)


@pytest.mark.parametrize(
    ("attempts", "was_cut", "when"),
    [
        (0, False, "before its first call"),
        (1, True, "in the middle of attempt 1"),
        (2, False, "after attempt 2"),
    ],
)
def test_when_it_passed(chat_job: Any, attempts: int, was_cut: bool, when: str) -> None:
    trip = Trip(chat_job(deadline_at=1_001.0), 1_000.0)
    assert told(trip, attempts=attempts, was_cut=was_cut).endswith(f"the job's deadline passed {when}")


@pytest.mark.parametrize(
    ("followed", "where"),
    [(None, "before a worker could start it"), ("token", "while it waited for an equal prompt")],
)
def test_where_it_had_passed_already(chat_job: Any, followed: str | None, where: str) -> None:
    trip = Trip(chat_job(deadline_at=1_000.0), 1_000.0)
    trip.followed = followed
    assert told(trip).endswith(f"the job's deadline passed {where}")
