"""A cancelled job is cancelled: wherever it is, whoever hears of it, and for good."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .harness import MESSAGES, wait_until

if TYPE_CHECKING:
    from tasks.blocking import SyncJob

    from .harness import World


def assert_cancelled_soon(world: World, job: SyncJob) -> None:
    cancelled_at = time.monotonic()
    (result,) = world.results([job])
    assert result.status == "cancelled"
    assert time.monotonic() - cancelled_at < 2  # a second, and another for a loaded machine


def test_queued_delayed_and_running_jobs_end_at_once(world: World) -> None:
    world.start_redis()
    for _ in range(2):
        world.start_worker(concurrency=1, wait=False)
    running = world.submit(2, model="slower")
    world.wait_in_flight(running, model="slower")
    (queued,) = world.submit(1, model="quick")
    (delayed,) = world.submit(1, model="quick", delay_s=600)
    for job in (queued, delayed, running[0]):
        assert job.cancel()
        assert_cancelled_soon(world, job)
    wait_until(lambda: _call(world, running[0])["cancelled"], "the HTTP request is closed")
    assert world.results(running[1:])[0].ok
    assert world.calls([queued, delayed], model="quick") == [0, 0]
    assert not queued.cancel()
    wait_until(lambda: world.queued() + world.redis.hlen("unacked") == 0, "their messages are thrown away")


def _call(world: World, job: SyncJob) -> dict[str, object]:
    (call,) = (call for call in world.providers.ledger("slower") if call["job_id"] == job.id)
    return call


def test_a_group_that_is_cancelled_comes_to_its_end(world: World) -> None:
    world.start_redis()
    for _ in range(2):
        world.start_worker(concurrency=2, wait=False)
    row = {"model": "slower", "messages": [{"role": "user", "content": "Hello"}]}
    group = world.queue.submit_many([row] * 30)
    wait_until(lambda: world.redis.zcard("pm:leases") == 4, "all places are taken")
    assert group.cancel() == 30
    results = list(group.as_completed())
    assert [result.status for result in results] == ["cancelled"] * 30
    assert group.progress().cancelled == 30
    world.wait_clean()


def test_a_cancellation_outlives_the_workers(world: World) -> None:
    world.start_redis()
    first = world.start_worker(concurrency=1, lease_s=1.0)
    running = world.submit(1, model="slower")
    world.wait_in_flight(running, model="slower")
    waiting = world.submit(2, model="quick")
    first.kill()
    # Nobody is there to hear it. The first job's message comes back when the lease has ended.
    for job in (*running, waiting[0]):
        assert job.cancel()
    world.start_worker(concurrency=1, lease_s=1.0)
    statuses = [result.status for result in world.results([*running, *waiting])]
    assert statuses == ["cancelled", "cancelled", "succeeded"]
    assert world.calls(waiting, model="quick") == [0, 1]
    assert world.calls(running, model="slower") == [1]
    world.wait_clean()


def test_revoked_by_remote_control_it_ends_as_well_and_workers_that_start_later_know(world: World) -> None:
    world.start_redis()
    first = world.start_worker(concurrency=1)
    running = world.submit(1, model="slower")
    world.wait_in_flight(running, model="slower")
    (waiting,) = world.submit(1, model="quick", delay_s=3)
    world.celery().control.revoke([running[0].id, waiting.id], terminate=True)
    for job in (running[0], waiting):
        assert_cancelled_soon(world, job)
    wait_until(lambda: world.redis.zcard("pm:cancelled") == 2, "Redis remembers it")
    first.kill()
    world.start_worker(concurrency=1)
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts") == 0, "the message is due")
    world.wait_clean()
    assert world.calls([waiting], model="quick") == [0]


def test_a_worker_with_more_jobs_than_it_takes_at_a_time_hears_remote_control(world: World) -> None:
    world.start_redis()
    world.start_worker(concurrency=520)
    jobs = world.submit(600, model="slower")
    wait_until(lambda: world.redis.zcard("pm:leases") >= 520, "it is full")
    control = world.celery().control
    assert control.ping(timeout=2.0)
    last = jobs[-5:]  # of the others some may have ended by now
    control.revoke([job.id for job in last], terminate=True)
    assert_cancelled_soon(world, last[0])
    assert {result.status for result in world.results(last)} == {"cancelled"}


def test_revoked_without_terminate_a_running_job_goes_on(world: World) -> None:
    # As Celery says; a worker that does not run it must not end it either.
    world.start_redis()
    for _ in range(2):
        world.start_worker(concurrency=1, wait=False)
    running = world.submit(2, model="slow")
    world.wait_in_flight(running, model="slow")
    world.celery().control.revoke([job.id for job in running])
    assert [result.status for result in world.results(running)] == ["succeeded"] * 2


def test_a_cancelled_job_stays_so_though_its_worker_has_never_heard_of_it(world: World) -> None:
    """Or has forgotten it: it remembers so many, and a heartbeat names those that were cancelled since the last."""
    world.start_redis()
    world.start_worker(concurrency=2)
    wait_until(lambda: world.redis.hget("pm:reaper", "at"), "its first heartbeat has been heard")
    a_minute_ago_ms = (world.redis.time()[0] - 60) * 1000
    world.redis.zadd("pm:cancelled", {"forgotten": a_minute_ago_ms})
    jobs = [world.queue.submit(model="quick", messages=MESSAGES, id=job_id) for job_id in ("forgotten", "kept")]
    assert [result.status for result in world.results(jobs)] == ["cancelled", "succeeded"]
    assert world.calls(jobs, model="quick") == [0, 1]
    world.wait_clean()
