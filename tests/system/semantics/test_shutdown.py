"""How a worker ends: what it finishes, what it hands back, and in what order it closes."""

from __future__ import annotations

from signal import SIGINT, SIGQUIT, SIGTERM
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from .harness import HangingServer, Side, Workers

SOON_S = 20.0
"""Far less than the jobs last that a cold shutdown must not wait for."""


def start_jobs(side: Side, name: str, n: int, *args: float) -> list[str]:
    ids = side.many(name, [args] * n)
    for id_ in ids:
        side.wait_running(id_)
    return ids


@pytest.mark.parametrize(
    ("signals", "exit_code"),
    [([SIGTERM], 0), ([SIGTERM, SIGTERM], 0), ([SIGINT], 1)],
    ids=["sigterm", "sigterm-twice", "sigint"],
)
def test_a_warm_shutdown_finishes_what_runs_and_leaves_the_rest(
    workers: Workers, signals: list[int], exit_code: int
) -> None:
    side = workers.start(concurrency=4, conf={"worker_prefetch_multiplier": 2})
    running = start_jobs(side, "gated", 2) + start_jobs(side, "gated_def", 2)
    waiting = side.many("nap_async", [(0,)] * 6)
    wait_until(lambda: side.unacknowledged() == 8, "four of them wait for a place in the worker")
    for number in signals:
        side.signal(number)
        wait_until(lambda: "Warm shutdown" in side.log_text(), "the signal has arrived")
    side.redis.set("gate", "open")
    assert side.wait_exit() == exit_code
    assert [side.state(id_) for id_ in running] == ["SUCCESS"] * 4
    assert side.queued_ids() == dict.fromkeys(waiting, 1)
    assert side.unacknowledged() == 0
    # The lifespan was left on the loop, after the last job.
    assert side.redis.get("lifespan:left") == "4"


def test_a_cold_shutdown_hands_the_jobs_back(workers: Workers, hanging: HangingServer) -> None:
    side = workers.start(concurrency=5)
    running = start_jobs(side, "nap_async", 4, 60)
    fetching = side.send("fetch", hanging.url)
    assert hanging.asked.wait(20)
    waiting = side.many("nap_async", [(0,)] * 6)
    side.signal(SIGQUIT)
    side.wait_exit(SOON_S)
    assert side.queued_ids() == dict.fromkeys([*running, fetching, *waiting], 1)
    assert side.unacknowledged() == 0
    assert hanging.closed_at is not None
    assert side.redis.lrange(f"cleaned:{fetching}", 0, -1) == [fetching]
    assert not any(side.stored(id_) for id_ in running)
    assert side.redis.exists("lifespan:left")


def test_a_cold_shutdown_waits_for_no_plain_function(workers: Workers) -> None:
    side = workers.start(concurrency=2)
    running = start_jobs(side, "nap", 2, 60)
    side.signal(SIGQUIT)
    side.wait_exit(SOON_S)
    assert side.queued_ids() == dict.fromkeys(running, 1)


def test_a_soft_shutdown_finishes_the_short_jobs(workers: Workers) -> None:
    side = workers.start(concurrency=4, conf={"worker_soft_shutdown_timeout": 1.0})
    short = start_jobs(side, "gated", 2)
    long = start_jobs(side, "nap_async", 2, 60)
    side.signal(SIGQUIT)
    wait_until(lambda: "Initiating Soft Shutdown" in side.log_text(), "the time of grace has begun")
    side.redis.set("gate", "open")
    side.wait_exit(SOON_S)
    assert [side.state(id_) for id_ in short] == ["SUCCESS"] * 2
    assert side.queued_ids() == dict.fromkeys(long, 1)
    assert side.unacknowledged() == 0


def test_a_warm_shutdown_that_turns_cold(workers: Workers) -> None:
    side = workers.start(concurrency=2)
    running = start_jobs(side, "nap_async", 2, 60)
    side.signal(SIGTERM)
    wait_until(lambda: "Warm shutdown" in side.log_text(), "the drain has begun")
    side.signal(SIGQUIT)
    side.wait_exit(SOON_S)
    assert side.queued_ids() == dict.fromkeys(running, 1)
    assert side.unacknowledged() == 0


@pytest.mark.parametrize("number", [SIGTERM, SIGQUIT], ids=["warm", "cold"])
def test_sub_tasks_that_jobs_left_running_are_cancelled(workers: Workers, number: int) -> None:
    side = workers.start()
    assert side.wait_results(side.send("leave_running")) == ["left"]
    side.signal(number)
    side.wait_exit(SOON_S)
    assert side.redis.get("leftover:cancelled") == "1"
    assert "Task was destroyed but it is pending" not in side.log_text()
    assert "Traceback" not in side.log_text()


def test_a_lifespan_that_fails_ends_the_worker_with_the_reason(workers: Workers) -> None:
    side = workers.launch(environment={"SEMANTICS_BROKEN_LIFESPAN": "1"})
    assert side.wait_exit() != 0
    assert "the lifespan cannot open its database" in side.log_text()
    assert "AttributeError" not in side.log_text()


def test_a_broker_without_an_event_loop_is_refused(workers: Workers) -> None:
    side = workers.launch(conf={"broker_url": "memory://", "broker_transport": None})
    assert side.wait_exit() != 0
    assert "The asyncio pool needs a broker that Celery can poll" in side.log_text()
    assert "AttributeError" not in side.log_text()
