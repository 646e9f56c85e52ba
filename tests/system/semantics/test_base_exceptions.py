"""Exceptions that are no `Exception`. Stock Celery differs here from pool to pool, so the outcome is stated.

On `threads`, SystemExit never acknowledges the message; on `prefork` it costs a process; MemoryError is raised again
in the worker's main process. On ours a task's code can end neither the worker nor its neighbours: the job has failed,
its message is acknowledged and its place is free again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from .harness import Side

LOST = "WorkerLostError"

OUTCOMES = [
    ("fail", "exit", LOST),
    ("fail_async", "exit", LOST),
    ("fail", "interrupt", LOST),
    ("fail_async", "interrupt", LOST),
    ("fail", "own_base", LOST),
    ("fail_async", "own_base", LOST),
    ("fail", "generator_exit", LOST),
    ("fail_async", "generator_exit", LOST),
    ("fail", "memory", "MemoryError"),
    ("fail_async", "memory", "MemoryError"),
    # Nobody asked Celery for the job's end, so it isn't revoked: the task's own code failed.
    ("fail", "cancelled", "TaskCancelled"),
    ("fail_async", "cancelled", "TaskCancelled"),
    ("fail", "stop", "StopIteration"),
    # Python's own rule: a coroutine that raises StopIteration raises RuntimeError.
    ("fail_async", "stop", "RuntimeError"),
]


@pytest.mark.parametrize("limit", [None, 30], ids=["", "limited"])
@pytest.mark.parametrize(("task", "kind", "error"), OUTCOMES, ids=str)
def test_ends_the_job_alone(ours: Side, task: str, kind: str, error: str, limit: float | None) -> None:
    id_ = ours.send(task, kind, soft_time_limit=limit)
    report = ours.report({id_: 1})
    assert report.results[id_]["status"] == "FAILURE"
    assert report.results[id_]["result"]["exc_type"] == error
    assert ours.count(id_, "failure") == 1
    wait_until(lambda: ours.pool()["running"] == 0, "the job's place is free")


def test_a_process_that_a_prefork_task_ends_fails_the_job_too(ours: Side, prefork: Side) -> None:
    """The one kind that a stock pool records well, so that "as stock" is not only our word."""
    records = [side.wait_results(side.send("fail", "exit"))[0] for side in (ours, prefork)]
    assert [type(record).__name__ for record in records] == [LOST, LOST]


def test_a_sub_task_that_nobody_awaits_cannot_end_the_worker(ours: Side) -> None:
    neighbour = ours.send("nap_async", 0.3)
    assert ours.wait_results(ours.send("stray_exit"), neighbour) == ["survived", "slept"]
    assert "A task tried to end the worker's process" in ours.log_text()
    assert ours.wait_results(ours.send("add_async", 1, 2)) == [3]


@pytest.mark.parametrize(("leader", "follower"), [(True, False), (False, True)], ids=["leader", "follower"])
def test_a_failure_that_two_jobs_share_ends_one_only(ours: Side, leader: bool, follower: bool) -> None:
    """Celery clears the frames of a failed job's traceback; another job's frame must not be among them."""
    key = f"{leader}-{follower}"
    ids = [
        ours.send("share_failure", key, kwargs={"leads": leads, "catches": catches})
        for leads, catches in ((True, leader), (False, follower))
    ]
    results = ours.wait_results(*ids)
    assert [result if isinstance(result, str) else type(result) for result in results] == [
        "fell back" if catches else ConnectionError for catches in (leader, follower)
    ]
