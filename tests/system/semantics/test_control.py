"""Remote control of a running worker: what it reports and how it changes its size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import wait_until

from .harness import Side, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def side(redis_servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    workers = Workers(redis_servers["ours"], tmp_path_factory.mktemp("control"))
    # Twice as many are received as can run, so that some wait for a place.
    yield workers.start(concurrency=4, conf={"worker_prefetch_multiplier": 2})
    workers.close()


def assert_size(side: Side, n: int) -> None:
    """The limit, the free places, the prefetch count and what really runs at a time agree."""

    def sizes() -> bool:
        stats = side.ask("stats")
        return (stats["pool"]["max-concurrency"], stats["pool"]["free"], stats["prefetch_count"]) == (n, n, 2 * n)

    wait_until(sizes, f"limit, free places and prefetch count follow {n}; they are {side.ask('stats')}")
    assert side.most_at_once("crowd", n) == n
    assert side.most_at_once("crowd_def", n) == n


def ids(requests: list[dict[str, Any]]) -> set[str]:
    return {request.get("request", request)["id"] for request in requests}


def test_inspect(side: Side) -> None:
    assert side.ask("ping") == {"ok": "pong"}
    running = [side.send("nap_async", 1) for _ in range(2)] + [side.send("nap", 1) for _ in range(2)]
    for id_ in running:
        side.wait_running(id_)
    reserved = side.send("nap_async", 0)
    side.wait_event(reserved, "received")
    active = side.ask("active")
    assert ids(active) == set(running)
    assert len({request["worker_pid"] for request in active}) == 4  # a token for each job, not the process
    assert all(request["time_start"] for request in active)
    assert ids(side.ask("reserved")) == {reserved}
    stats = side.ask("stats")
    assert stats["pool"]["implementation"] == "workers.pool.task_pool:TaskPool"
    assert stats["pool"]["running"] == 4
    assert stats["pool"]["free"] == 0
    side.wait_results(*running, reserved)
    wait_until(lambda: side.pool()["running"] == 0, "the places are free")


def test_revoked_while_it_waits_for_its_time(side: Side) -> None:
    """It waits in Redis, not in the worker: no worker has it scheduled, and its end is known before its time."""
    id_ = side.send("add", 1, 2, countdown=6)
    wait_until(lambda: side.redis.zcard("pm:delayed:work"), "it waits for its time")
    assert ids(side.ask("scheduled")) == set()
    side.control("revoke", id_)
    assert id_ in side.ask("revoked")
    wait_until(lambda: side.state(id_) == "REVOKED", "its end is known")
    assert not side.event_names(id_), "it has not come to a worker"
    side.settle({id_: 1})
    assert side.event_names(id_) == ["revoked"]
    assert side.redis.zcard("pm:delayed:work") == 0


def test_grow_and_shrink(side: Side) -> None:
    assert_size(side, 4)
    assert "ok" in side.control("pool_grow", 3)
    assert_size(side, 7)
    assert "ok" in side.control("pool_shrink", 5)
    assert_size(side, 2)
    assert "ok" in side.control("pool_grow", 2)
    assert_size(side, 4)


def test_growing_starts_jobs_that_wait(side: Side) -> None:
    running = side.many("nap_async", [(1,)] * 4)
    waiting = side.many("nap_async", [(0.1,)] * 2)
    for id_ in waiting:
        side.wait_event(id_, "received")
    side.control("pool_grow", 1)
    side.wait_results(*waiting)
    assert not any(side.stored(id_) for id_ in running)
    side.wait_results(*running)
    side.control("pool_shrink", 1)
    assert_size(side, 4)


def test_a_busy_pool_shrinks_wholly_or_not_at_all(side: Side) -> None:
    running = side.many("nap_async", [(0.6,)] * 3)
    for id_ in running:
        side.wait_running(id_)
    assert "error" in side.control("pool_shrink", 2)
    side.wait_results(*running)
    assert_size(side, 4)


def test_the_last_place_stays(side: Side) -> None:
    assert "error" in side.control("pool_shrink", 4)
    assert_size(side, 4)


def test_autoscale(workers: Workers) -> None:
    side = workers.start(options=["--autoscale=20,2"], environment={"AUTOSCALE_KEEPALIVE": "1"})
    assert side.pool()["max-concurrency"] == 2
    assert side.most_at_once("crowd", 20) == 20
    wait_until(lambda: side.pool()["max-concurrency"] == side.pool()["free"] == 2, "it is small again")
    assert side.control("autoscale", 6, 3)
    wait_until(lambda: side.pool()["max-concurrency"] == 3, "the new minimum")
    assert side.most_at_once("crowd_def", 6) == 6


def test_queues_come_and_go(side: Side) -> None:
    side.control("add_consumer", "extra")
    assert side.wait_results(side.send("add_async", 1, 2, queue="extra")) == [3]
    side.control("cancel_consumer", "extra")
    waiting = side.send("add_async", 1, 2, queue="extra")
    assert side.wait_results(side.send("add_async", 3, 4)) == [7]
    assert side.queued_ids("extra") == {waiting: 1}


def test_time_limits_change(side: Side) -> None:
    """On stock pools the command is answered with "ok" and changes nothing: the request class has the old limits."""
    side.control("time_limit", "nap_uncaught", soft=0.2)
    (error,) = side.wait_results(side.send("nap_uncaught", 60))
    assert type(error).__name__ == "SoftTimeLimitExceeded"
    side.control("time_limit", "nap_uncaught", hard=0.2)
    (error,) = side.wait_results(side.send("nap_uncaught", 60))
    assert type(error).__name__ == "TimeLimitExceeded"
    side.control("time_limit", "nap_uncaught")
    assert side.wait_results(side.send("nap_uncaught", 0.4)) == [None]


def test_rate_limits_change(workers: Workers) -> None:
    side = workers.start()
    side.control("rate_limit", "add_async", "1/h")
    first = side.send("add_async", 1, 2)
    assert side.wait_results(first) == [3]
    second = side.send("add_async", 1, 2)
    side.wait_event(second, "received")
    assert side.wait_results(side.send("add", 3, 4)) == [7]
    assert side.event_names(second) == ["received"]


def test_shutdown_by_remote_control(workers: Workers) -> None:
    side = workers.start(concurrency=2)
    ids_ = side.many("nap_async", [(0.5,), (0.5,)])
    for id_ in ids_:
        side.wait_running(id_)
    side.app.control.broadcast("shutdown", destination=[side.host])
    assert side.wait_exit() == 0
    assert [side.state(id_) for id_ in ids_] == ["SUCCESS", "SUCCESS"]
    assert side.is_idle()
