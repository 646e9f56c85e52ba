"""Workers are killed, frozen and stopped: promises.md rows 1 to 5, 14 and 17."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

from .harness import LEASE_S, published

if TYPE_CHECKING:
    from .harness import Worker, World


@pytest.mark.promise(1)
def test_a_killed_workers_jobs_end_elsewhere_and_are_flagged(world: World) -> None:
    world.start_redis()
    doomed, other = world.start_worker(concurrency=3, wait=False), world.start_worker(concurrency=20, wait=False)
    doomed.wait_ready(), other.wait_ready()
    jobs = world.submit(12, model="slower")
    world.wait_in_flight(jobs, model="slower")
    doomed.kill()
    results = world.results(jobs)
    calls = world.calls(jobs, model="slower")
    assert [result.status for result in results] == ["succeeded"] * 12
    assert max(calls) <= 2
    assert sum(n == 2 for n in calls) <= 3
    for n, result in zip(calls, results, strict=True):
        assert n == 1 or result.suspected_double_payment
    world.wait_clean()
    assert all(job.status() == "succeeded" for job in jobs)


@pytest.mark.promise(1)
def test_a_death_is_noticed_in_ten_s_with_the_default_lease(world: World) -> None:
    world.start_redis()
    doomed = world.start_worker(concurrency=1, lease_s=6.0)
    (job,) = world.submit(1, model="slower")
    world.wait_in_flight([job], model="slower")
    other = world.start_worker(concurrency=1, lease_s=6.0)
    doomed.kill()
    died_at = time.time()
    world.results([job])
    second_call_at = max(call["time"] for call in world.providers.ledger("slower") if call["job_id"] == job.id)
    assert second_call_at - died_at <= 10
    assert other.is_alive()


@pytest.mark.promise(2)
def test_a_worker_killed_while_it_waits_loses_nothing(world: World) -> None:
    world.start_redis()
    for _ in range(2):
        doomed = world.start_worker()
        doomed.signal(signal.SIGSTOP)
        (job,) = world.submit(1, model="quick")
        doomed.kill()
        world.start_worker()
        assert world.results([job])[0].ok
        assert world.calls([job], model="quick") == [1]
        world.redis.flushall()  # no worker is left to hear of it but the last, which has nothing to do


@pytest.mark.promise(2)
def test_messages_taken_but_never_received_come_back(world: World) -> None:
    # The moment that BRPOP loses: Redis has given the messages away, the worker has not got them.
    world.start_redis()
    proxy = world.start_proxy()
    doomed = world.start_worker(url=f"redis://127.0.0.1:{proxy.port}/0")
    wait_until(lambda: world.redis.exists("pm:reaper"), "the worker's connection stands")
    proxy.set("hold_messages")
    jobs = world.submit(20, model="quick")
    wait_until(lambda: world.redis.hlen("unacked") > 0, "the worker has asked for them")
    taken = world.redis.hlen("unacked")
    doomed.kill()
    assert taken + world.queued() == 20
    world.start_worker()
    assert all(result.ok for result in world.results(jobs))
    assert world.calls(jobs, model="quick") == [1] * 20
    world.wait_clean()


@pytest.mark.promise(3)
def test_a_few_kills_under_load_lose_nothing(world: World) -> None:
    world.start_redis()
    workers = [world.start_worker(concurrency=10, wait=False) for _ in range(2)]
    jobs = world.submit(80, model="steady")
    for kill in range(3):
        ended = 15 * (kill + 1)
        world.wait_ended(jobs, ended)
        workers[kill % 2].kill()
        workers[kill % 2] = world.start_worker(concurrency=10, wait=False)
    results, calls = world.results(jobs), world.calls(jobs, model="steady")
    assert [result.status for result in results] == ["succeeded"] * 80
    extra = sum(calls) - 80
    assert 0 <= extra <= 3 * 10
    assert all(result.suspected_double_payment for n, result in zip(calls, results, strict=True) if n > 1)
    world.wait_clean()


@pytest.mark.promise(4)
def test_a_frozen_workers_late_answer_is_refused(world: World) -> None:
    world.start_redis()
    frozen = world.start_worker(concurrency=2)
    (job,) = world.submit(1, model="slow")
    world.wait_in_flight([job], model="slow")
    frozen.signal(signal.SIGSTOP)
    world.start_worker(concurrency=2)
    with published(world.server, job.id) as states:
        (result,) = world.results([job])
        record = world.redis.get(f"celery-task-meta-{job.id}")
        frozen.signal(signal.SIGCONT)
        # It hears of its lost lease, or the answer was quicker and was refused.
        wait_until(
            lambda: "leases were lost" in frozen.log_text() or f"{job.id} refused" in frozen.log_text(),
            "the frozen worker is told",
        )
        (after,) = world.submit(1, model="quick")
        world.results([after])
    assert result.ok and result.suspected_double_payment
    assert states == ["SUCCESS"]
    assert world.redis.get(f"celery-task-meta-{job.id}") == record
    assert world.calls([job], model="slow") == [2]
    assert frozen.is_alive()
    world.wait_clean()


@pytest.mark.promise(5)
def test_a_stopping_worker_finishes_its_jobs_under_their_leases(world: World) -> None:
    world.start_redis()
    stopping = world.start_worker(concurrency=2)
    running = world.submit(2, model="slower")
    world.wait_in_flight(running, model="slower")
    waiting = world.submit(2, model="quick")
    stopping.signal(signal.SIGTERM)
    world.start_worker(concurrency=4)
    assert stopping.wait_exit() == 0
    assert all(result.ok and not result.suspected_double_payment for result in world.results(running + waiting))
    assert world.calls(running, model="slower") == [1, 1]
    assert world.calls(waiting, model="quick") == [1, 1]
    world.wait_clean()


@pytest.mark.promise(5)
def test_a_worker_told_to_quit_hands_its_jobs_back_at_once(world: World) -> None:
    world.start_redis()
    # A lease that outlasts the test: only the hand-back can bring the jobs back.
    quitting = world.start_worker(concurrency=2, lease_s=600)
    jobs = world.submit(3, model="slower")
    world.wait_in_flight(jobs[:2], model="slower")
    quitting.signal(signal.SIGQUIT)
    quitting.wait_exit()
    assert world.queued() == 3
    assert world.redis.hlen("unacked") == 0
    assert {job.status() for job in jobs} == {"queued"}
    world.start_worker(concurrency=3, lease_s=600)
    results = world.results(jobs)
    assert all(result.ok for result in results)
    assert [result.suspected_double_payment for result in results] == [True, True, False]


@pytest.mark.promise(5)
def test_a_worker_killed_in_its_grace_time_loses_nothing(world: World) -> None:
    world.start_redis()
    stopping = world.start_worker(concurrency=2)
    jobs = world.submit(2, model="slower")
    world.wait_in_flight(jobs, model="slower")
    stopping.signal(signal.SIGTERM)
    stopping.wait_logged("Warm shutdown")
    stopping.kill()
    world.start_worker(concurrency=2)
    results = world.results(jobs)
    assert all(result.ok and result.suspected_double_payment for result in results)
    assert world.calls(jobs, model="slower") == [2, 2]


@pytest.mark.promise(14)
def test_a_job_much_longer_than_its_lease_runs_once(world: World) -> None:
    world.start_redis()
    for _ in range(2):
        world.start_worker(concurrency=2, wait=False)
    task = world.celery().send_task("tests.system.faults.app.nap", args=[6 * LEASE_S])
    assert task.get(timeout=60) == "rested"
    assert len(world.starts(task.id)) == 1
    world.wait_clean()


@pytest.mark.promise(14)
def test_a_countdown_is_kept_though_its_first_worker_is_killed(world: World) -> None:
    world.start_redis()
    doomed = world.start_worker()
    sent_at = time.monotonic()
    task = world.celery().send_task("tests.system.faults.app.nap", args=[0], countdown=5)
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts"), "the message waits in Redis")
    doomed.kill()
    world.start_worker()
    ready_at = time.monotonic()
    assert task.get(timeout=60) == "rested"
    (started_at,) = world.starts(task.id)
    # On time, if the worker that runs it was there in time; a loaded machine may take a moment more.
    assert started_at - sent_at >= 4.99
    assert started_at <= max(sent_at + 5, ready_at) + 3
    world.wait_clean()


@pytest.mark.promise(17)
def test_a_poison_job_is_buried_after_a_few_deliveries(world: World) -> None:
    world.start_redis()
    task = world.celery().send_task("tests.system.faults.app.poison")
    neighbour = world.celery().send_task("tests.system.faults.app.nap", args=[0.2])
    while not world.dead():
        worker = world.start_worker(concurrency=4, lease_s=0.8, max_deliveries=3, wait=False)
        wait_until(partial(_has_poisoned, world, worker), "it dies of the poison, or buries it")
    (letter,) = world.dead()
    assert (letter["kind"], letter["id"]) == ("poison", task.id)
    assert "died 3 times" in letter["reason"]
    assert len(world.starts(task.id)) == 3
    wait_until(task.failed, "the caller is told")
    assert "dead_letter" in str(task.result)
    assert neighbour.get(timeout=60) == "rested"
    assert worker.is_alive()
    world.wait_clean()


def _has_poisoned(world: World, worker: Worker) -> bool:
    return not worker.is_alive() or bool(world.dead())
