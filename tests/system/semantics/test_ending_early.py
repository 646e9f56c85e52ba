"""Revocation, termination and time limits, compared with prefork: threads can end no running task."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import wait_until

from .harness import Side, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .harness import HangingServer


@pytest.fixture(scope="module")
def small(redis_servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """A worker of ours with one place; one job more waits for it in the worker."""
    workers = Workers(redis_servers["ours"], tmp_path_factory.mktemp("small"))
    yield workers.start(concurrency=1, conf={"worker_prefetch_multiplier": 2})
    workers.close()


def without(events: list[Any], *names: str) -> list[Any]:
    return [event for event in events if event[0] not in names]


def distinct(events: list[Any]) -> set[str]:
    return {str(event) for event in events}


# -- revoke ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "add_async"])
def test_revoked_before_it_arrives(ours: Side, prefork: Side, name: str) -> None:
    reports = []
    id_ = f"revoked-before-{name}"
    for side in (ours, prefork):
        assert side.control("revoke", id_)
        side.send(name, 1, 2, task_id=id_)
        reports.append(side.report({id_: 1}).comparable())
    mine, stock = reports
    assert mine == stock
    assert ours.state(id_) == "REVOKED"
    assert ours.event_names(id_) == ["revoked"]


def test_revoked_while_it_waits_for_a_place(small: Side) -> None:
    running = small.send("nap_async", 0.5)
    small.wait_running(running)
    waiting = small.send("nap_async", 0.5)
    small.wait_event(waiting, "received")
    small.control("revoke", waiting)
    small.settle({running: 1, waiting: 1})
    assert (small.state(running), small.state(waiting)) == ("SUCCESS", "REVOKED")
    assert small.event_names(waiting) == ["received", "revoked"]
    assert small.wait_results(small.send("add", 1, 2)) == [3]  # its place was not lost


def test_revoked_by_a_stamped_header(ours: Side, prefork: Side) -> None:
    for side in (ours, prefork):
        side.control("revoke_by_stamped_headers", {"tenant": ["red"]})
        for tenant in ("red", "blue"):
            signature = side.signature("add_async", 1, 2)
            signature.apply_async(task_id=f"stamped-{tenant}", tenant=tenant, stamped_headers=["tenant"])
        side.settle({"stamped-red": 1, "stamped-blue": 1})
        assert [side.state(f"stamped-{tenant}") for tenant in ("red", "blue")] == ["REVOKED", "SUCCESS"]


def test_terminated_by_a_stamped_header_while_it_runs(ours: Side) -> None:
    signature = ours.signature("nap_async", 60)
    signature.apply_async(task_id="stamped-running", job="long", stamped_headers=["job"])
    ours.wait_running("stamped-running")
    ours.control("revoke_by_stamped_headers", {"job": ["long"]}, terminate=True)
    ours.settle({"stamped-running": 1})
    assert ours.state("stamped-running") == "REVOKED"


# -- terminate -------------------------------------------------------------------------------------------------------


def test_terminated_while_it_runs(ours: Side, prefork: Side) -> None:
    for side in (ours, prefork):
        side.send("nap_async", 60, task_id="terminated")
        side.wait_running("terminated")
        side.control("revoke", "terminated", terminate=True)
        side.settle({"terminated": 1})
        side.wait_event("terminated", "postrun")
    mine, stock = (side.report({"terminated": 1}).comparable() for side in (ours, prefork))
    # The tracer's end and the record of it belong to two threads, or processes: their order is open.
    for report in (mine, stock):
        report["events"]["terminated"].sort(key=str)
    assert mine == stock
    assert mine["states"] == {"terminated": ["REVOKED"]}
    assert set(ours.event_names("terminated")) == {"received", "prerun", "before_start", "revoked", "postrun"}


def test_terminating_closes_the_request_and_lets_clean_up_finish(ours: Side, hanging: HangingServer) -> None:
    id_ = ours.send("fetch", hanging.url)
    assert hanging.asked.wait(20)
    asked_at = time.monotonic()
    ours.control("revoke", id_, terminate=True)
    closed_at = wait_until(lambda: hanging.closed_at, "the request is closed")
    assert closed_at - asked_at < 1.0  # a promise of the pool, not of the machine: it takes milliseconds
    cleaned = f"cleaned:{id_}"
    wait_until(lambda: ours.redis.lrange(cleaned, 0, -1) == [id_], "the clean-up ran to its end, as this job")
    ours.settle({id_: 1})
    assert ours.state(id_) == "REVOKED"


def test_terminating_a_def_frees_its_place_at_once(small: Side) -> None:
    """Its thread can't be stopped; its answer is thrown away."""
    id_ = small.send("nap", 1.5)
    small.wait_running(id_)
    small.control("revoke", id_, terminate=True)
    assert small.wait_results(small.send("add", 1, 2)) == [3]
    wait_until(lambda: small.redis.get("ended"), "the thread has ended")
    assert small.state(id_) == "REVOKED"
    assert small.count(id_, "success", "failure") == 0


def test_what_swallows_its_termination_stays_revoked(ours: Side) -> None:
    for name in ("yielding", "stubborn"):
        id_ = ours.send(name, 60)
        ours.wait_running(id_)
        ours.control("revoke", id_, terminate=True)
        ours.wait_event(id_, "postrun")
        assert ours.redis.exists(f"swallowed:{id_}")
        ours.settle({id_: 1})
        assert ours.state(id_) == "REVOKED"
        assert ours.count(id_, "success") == 0


def test_sigusr1_is_a_soft_time_limit(ours: Side, prefork: Side) -> None:
    names = {ours: "nap_async", prefork: "nap"}  # an interrupted asyncio.run in prefork is no model
    for side, name in names.items():
        side.send(name, 60, task_id="sigusr1", soft_time_limit=50)
        side.wait_running("sigusr1")
        side.control("revoke", "sigusr1", terminate=True, signal="SIGUSR1")
        side.wait_event("sigusr1", "postrun")
        side.settle({"sigusr1": 1})
    mine, stock = (side.report({"sigusr1": 1}).comparable() for side in (ours, prefork))
    assert sorted(mine["events"]["sigusr1"], key=str) == sorted(stock["events"]["sigusr1"], key=str)
    assert ["success", 0, {"result": ["str", "'caught'"]}] in mine["events"]["sigusr1"]
    # Celery has recorded REVOKED before the task's own end. Stock lets that end overwrite it, our backend does not.
    assert ours.state("sigusr1") in {"REVOKED", "SUCCESS"}


def test_one_sigusr1_interrupts_once_and_leaves_no_trace(ours: Side) -> None:
    id_ = ours.send("interrupted_twice", 0.3, soft_time_limit=50)
    ours.wait_running(id_)
    ours.control("revoke", id_, terminate=True, signal="SIGUSR1")
    ours.wait_event(id_, "postrun")
    (result,) = (fields["result"] for name, _, fields in ours.events(id_) if name == "success")
    assert result == ["list", "[1, True, 0]"]


# -- time limits -----------------------------------------------------------------------------------------------------


def test_a_soft_limit_that_the_task_catches(ours: Side, prefork: Side) -> None:
    ours.send("nap_async", 60, task_id="soft", soft_time_limit=0.3)
    prefork.send("nap", 60, task_id="soft", soft_time_limit=0.3)
    mine, stock = (side.report({"soft": 1}).comparable() for side in (ours, prefork))
    assert mine == stock
    assert ours.wait_results("soft") == ["caught"]


def test_a_soft_limit_that_it_does_not_catch(ours: Side, prefork: Side) -> None:
    for side in (ours, prefork):
        side.send("nap_uncaught", 60, task_id="soft-uncaught", soft_time_limit=0.3)
    mine, stock = (side.report({"soft-uncaught": 1}).comparable() for side in (ours, prefork))
    # What prefork raises carries no limit in its text; ours says which.
    for report in (mine, stock):
        assert report["results"]["soft-uncaught"]["status"] == "FAILURE"
        assert report["results"]["soft-uncaught"]["result"]["exc_type"] == "SoftTimeLimitExceeded"
    assert [event[0] for event in mine["events"]["soft-uncaught"]] == [
        event[0] for event in stock["events"]["soft-uncaught"]
    ]


def test_a_soft_limit_interrupts_once(ours: Side) -> None:
    assert ours.wait_results(ours.send("interrupted_twice", 0.3, soft_time_limit=0.1)) == [[1, True, 0]]


@pytest.mark.parametrize("limit", [{"soft_time_limit": 0.5}, {}], ids=["soft", "none"])
def test_a_soft_limit_does_not_strike_while_the_result_is_stored(workers: Workers, limit: dict[str, Any]) -> None:
    side = workers.start()
    id_ = side.send("hold", "let-go", **limit)
    side.wait_running(id_)
    with side.redis.pipeline() as together:
        together.set("let-go", 1)
        together.client_pause(1000, all=False)  # writes wait: the task returns, its result can't be stored yet
        together.execute()
    side.settle({id_: 1})
    assert side.state(id_) == "SUCCESS"


def test_a_soft_limit_ends_the_wait_for_a_def(ours: Side) -> None:
    """Its thread can't be interrupted, so it can't catch the limit; the job has failed all the same."""
    id_ = ours.send("nap", 0.6, soft_time_limit=0.2)
    (error,) = ours.wait_results(id_)
    assert type(error).__name__ == "SoftTimeLimitExceeded"
    ours.settle({id_: 1})
    assert ours.state(id_) == "FAILURE"


def test_a_hard_limit(ours: Side, prefork: Side) -> None:
    ours.send("nap_async", 60, task_id="hard", time_limit=0.3)
    prefork.send("nap", 60, task_id="hard", time_limit=0.3)
    for side in (ours, prefork):
        side.wait_event("hard", "failure")
        wait_until(side.is_idle, "the message is acknowledged")
    ours.wait_event("hard", "postrun")
    mine, stock = ours.report({"hard": 1}).comparable(), prefork.report({"hard": 0}).comparable()
    assert mine["results"] == stock["results"]
    assert mine["states"] == stock["states"] == {"hard": ["FAILURE"]}
    # Prefork kills the process, mostly before its tracer can send postrun, and reports the failure twice: when the
    # time is over, and when the process is gone.
    events, stock_events = (without(report["events"]["hard"], "postrun") for report in (mine, stock))
    assert distinct(events) == distinct(stock_events)
    assert len(events) == len(distinct(events))


@pytest.mark.parametrize("name", ["stubborn", "yielding"])
def test_a_hard_limit_on_a_coroutine_that_swallows_it(ours: Side, name: str) -> None:
    id_ = ours.send(name, 60, time_limit=0.2)
    (error,) = ours.wait_results(id_)
    assert type(error).__name__ == "TimeLimitExceeded"
    ours.wait_event(id_, "postrun")
    ours.settle({id_: 1})
    assert ours.redis.exists(f"swallowed:{id_}")
    assert ours.state(id_) == "FAILURE"
    assert ours.count(id_, "failure") == 1


def test_a_timed_out_task_that_was_not_acknowledged_runs_again(ours: Side, prefork: Side) -> None:
    for side in (ours, prefork):
        side.send("slow_once", task_id="slow", time_limit=2)
    for side in (ours, prefork):
        side.wait_published("slow", "SUCCESS")  # prefork records the failure of the first run before
        wait_until(side.is_idle, "nothing is left")
        assert side.redis.get("runs:slow") == "2"


def test_the_limits_of_the_app(workers: Workers) -> None:
    side = workers.start(conf={"task_soft_time_limit": 0.3, "task_time_limit": 0.7})
    caught, uncaught, plain, hard = side.wait_results(
        side.send("nap_async", 60),
        side.send("nap_uncaught", 60),
        side.send("nap", 1),
        side.send("interrupted_twice", 0.6),
    )
    assert caught == "caught"
    assert [type(error).__name__ for error in (uncaught, plain, hard)] == [
        "SoftTimeLimitExceeded",
        "SoftTimeLimitExceeded",
        "TimeLimitExceeded",
    ]
