"""A cancelled job is cancelled: wherever it is, whoever hears of it, and for good."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

from .harness import MESSAGES, ROOT, promptmill
from .test_privacy import drained

if TYPE_CHECKING:
    from typing import Any

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


def test_revoked_by_remote_control_it_ends_for_later_workers_too(world: World) -> None:
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


def test_a_worker_with_many_jobs_waiting_hears_remote_control(world: World) -> None:
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


def test_a_cancelled_job_stays_so_though_its_worker_never_heard(world: World) -> None:
    """Or has forgotten it: it remembers so many, and a heartbeat names those that were cancelled since the last."""
    world.start_redis()
    world.start_worker(concurrency=2)
    wait_until(lambda: world.redis.hget("pm:reaper", "at"), "its first heartbeat has been heard")
    a_minute_ago_ms = (world.redis.time()[0] - 60) * 1000
    jobs = [world.queue.submit(model="quick", messages=MESSAGES, id=name, delay_s=1) for name in ("forgotten", "kept")]
    world.redis.zadd("pm:cancelled", {"forgotten": a_minute_ago_ms})
    assert [result.status for result in world.results(jobs)] == ["cancelled", "succeeded"]
    assert world.calls(jobs, model="quick") == [0, 1]
    world.wait_clean()


def test_a_cancelled_id_that_is_forgotten_may_be_submitted_again(world: World) -> None:
    world.start_redis()
    for _ in range(2):
        world.start_worker(concurrency=1, wait=False)
    running = world.submit(2, model="slower")
    world.wait_in_flight(running, model="slower")
    job = world.queue.submit(model="quick", messages=MESSAGES, id="again")
    assert job.cancel()
    assert_cancelled_soon(world, job)
    world.results(running)
    wait_until(lambda: world.queued() + world.redis.hlen("unacked") == 0, "its message is thrown away")
    world.queue.forget("again")
    again = world.queue.submit(model="quick", messages=MESSAGES, id="again")
    assert [result.status for result in world.results([again])] == ["succeeded"]
    assert world.calls([again], model="quick") == [1]


def test_an_unknown_id_is_said_to_be_unknown(world: World) -> None:
    world.start_redis()
    environ = {"PROMPTMILL_REDIS_URL": world.server.url}
    for job_id in ("unknown", "pmg-unknown"):
        assert "is known" in promptmill(environ, "cancel", job_id, exit_code=1)
    assert world.redis.zcard("pm:cancelled") == 0
    (waiting,) = world.submit(1, model="quick")
    assert promptmill(environ, "cancel", waiting.id) == "1 cancelled\n"


@pytest.mark.promise(49)
def test_a_job_cancelled_long_before_it_is_due_stays_cancelled(world: World) -> None:
    world.start_redis()
    twenty_days_s = 20 * 86_400
    unheard, kept = world.submit(2, model="quick", delay_s=twenty_days_s)
    assert unheard.cancel()
    # Nobody was there to hear it, and in two weeks the mark is gone.
    world.redis.zrem("pm:cancelled", unheard.id)
    world.start_worker(concurrency=2)
    jobs = world.submit(3, model="quick", delay_s=twenty_days_s)
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts") == 5, "they wait")
    assert [job.cancel() for job in jobs] == [True] * 3
    assert [result.status for result in world.results(jobs)] == ["cancelled"] * 3
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts") == 2, "the messages of cancelled jobs are gone")
    # A day later the results are gone; the records live on.
    world.redis.delete(*(f"celery-task-meta-{job.id}" for job in jobs))
    assert [job.status() for job in jobs] == ["cancelled"] * 3
    assert min(world.redis.ttl(f"pm:job:{job.id}") for job in jobs) > twenty_days_s
    # The day has come.
    for raw in world.redis.zrange("pm:delayed:prompts", 0, -1):
        message = raw.replace(str(raw).split('"eta": "')[1].split('"')[0], "2020-01-01T00:00:00+00:00")
        world.redis.zrem("pm:delayed:prompts", raw)
        world.redis.zadd("pm:delayed:prompts", {message: 0})
    statuses = [result.status for result in world.results([unheard, kept])]
    assert statuses == ["cancelled", "succeeded"]
    assert world.calls([unheard, kept, *jobs], model="quick") == [0, 1, 0, 0, 0]
    world.wait_clean()


def test_the_jobs_of_purged_messages_end_as_cancelled(world: World) -> None:
    world.start_redis()
    row = {"model": "quick", "messages": MESSAGES}
    group = world.queue.submit_many([*[row] * 700, *[{**row, "delay_s": 600}] * 20])
    (single,) = world.submit(1, model="quick", priority="interactive")
    stock = world.celery().send_task("tests.system.faults.app.nap", args=[0], task_id="stock")
    world.redis.lpush("prompts", "garbage")
    command = [sys.executable, "-m", "celery", "-A", "tests.system.faults.app", "purge", "-f"]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PROMPTMILL_REDIS_URL": world.server.url,
        "FAULTS_TRANSPORT_OPTIONS": "{}",
        "FAULTS_RECORDER": world.server.url,
    }
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert "723" in ended.stdout, ended.stdout + ended.stderr
    assert [result.status for result in group.as_completed()] == ["cancelled"] * 720
    assert group.progress().cancelled == 720 and single.status() == "cancelled"
    assert stock.state == "REVOKED"
    world.wait_clean()
    assert world.redis.zcard("pm:cancelled") == 0
    # Their ids are free, as those of all jobs that have ended.
    world.queue.forget(single.id)
    world.start_worker(concurrency=2)
    again = world.queue.submit(model="quick", messages=MESSAGES, id=single.id)
    assert world.results([again])[0].ok


def test_a_large_group_is_cancelled_in_bulk(world: World) -> None:
    world.start_redis()
    for _ in range(2):
        world.start_worker(concurrency=1, wait=False)
    running = world.submit(2, model="slower")
    world.wait_in_flight(running, model="slower")
    row = {"model": "slower", "messages": MESSAGES}
    group = world.queue.submit_many([row] * 6_000)
    assert group.cancel() == 6_000
    wait_until(lambda: group.progress().finished, "the group ends", timeout_s=20)
    assert group.progress().cancelled == 6_000
    assert [result.ok for result in world.results(running)] == [True] * 2
    wait_until(lambda: world.queued() == 0, "its messages go", timeout_s=20)
    results = world.redis.info("commandstats")["cmdstat_publish"]["calls"]
    assert results < 7_500, "each end is published once"
    world.wait_clean()


def test_events_name_a_job_that_ends_without_having_run(world: World) -> None:
    """Celery names a job when it is received, and these never are: Flower would show ends without names."""
    world.start_redis()
    client = world.celery()
    revoked: dict[str, list[str]] = {}

    def hear(event: dict[str, Any]) -> None:
        revoked.setdefault(event["uuid"], []).append(event["name"])

    with client.connection_for_read() as listening:
        receiver = client.events.Receiver(listening, handlers={"task-revoked": hear})
        with receiver.consumer_context() as (connection, *_):
            drained(connection)  # it subscribes when it first listens
            world.start_worker(concurrency=1, options=["-E"])
            running = world.submit(1, model="slower")
            world.wait_in_flight(running, model="slower")
            (waiting,) = world.submit(1, model="quick")
            (delayed,) = world.submit(1, model="quick", delay_s=600)
            nap = {"args": [0], "expires": 0.1}
            expired, unrecorded = (
                client.send_task("tests.system.faults.app.nap", **nap),
                client.send_task("tests.system.faults.app.nap", args=[0]),
            )
            for job in (waiting, delayed):
                job.cancel()
            client.control.revoke(unrecorded.id)
            names = {waiting.id: "prompts.chat", delayed.id: "prompts.chat"}
            names |= dict.fromkeys((expired.id, unrecorded.id), "tests.system.faults.app.nap")
            wait_until(lambda: drained(connection) and revoked.keys() >= names.keys(), "events arrive")
    assert revoked == {job_id: [name] for job_id, name in names.items()}, "each is told of once"
    assert world.results(running)[0].ok
