"""A task blocks the loop of a worker: what becomes of its neighbours."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

from .harness import LEASE_S

if TYPE_CHECKING:
    from .harness import World

BLOCKED_S = 4 * LEASE_S


@pytest.mark.parametrize("patience_s", [60.0, 0.0], ids=["patient", "impatient"])
def test_neighbours_are_paid_once_and_the_unstarted_go_elsewhere(world: World, patience_s: float) -> None:
    world.start_redis()
    first = world.start_worker(concurrency=5, loop_patience_s=patience_s)
    second = world.start_worker(concurrency=5)
    second.signal(signal.SIGSTOP)  # it is there, and takes nothing yet
    neighbours = world.submit(2, model="slower")
    world.wait_in_flight(neighbours, model="slower")
    blocking = world.celery().send_task("tests.system.faults.app.block", args=[BLOCKED_S, "the-prompt"])
    world.wait_started(blocking.id)
    unstarted = world.submit(2, model="quick")
    wait_until(lambda: world.queued() == 0, "the blocked worker takes them")
    second.signal(signal.SIGCONT)
    assert [result.status for result in world.results(unstarted)] == ["succeeded"] * 2
    assert not blocking.ready(), "they did not wait for it"
    assert [result.suspected_double_payment for result in world.results(unstarted)] == [False] * 2
    assert [result.status for result in world.results(neighbours)] == ["succeeded"] * 2
    wait_until(blocking.successful, "the one that blocks ends")
    world.wait_clean()
    assert world.calls(unstarted, model="quick") == [1] * 2
    if patience_s:
        assert world.calls(neighbours, model="slower") == [1] * 2
        assert len(world.starts(blocking.id)) == 1
    else:
        first.wait_logged("left to other workers")
    blocked = next(line for line in first.log_text().splitlines() if "blocked by" in line)
    assert "the task tests.system.faults.app.block, at " in blocked and "in block" in blocked
    assert "the-prompt" not in first.log_text()
    assert first.is_alive() and second.is_alive()
