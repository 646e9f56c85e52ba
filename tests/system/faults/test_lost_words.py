"""Redis loses its last words: promises.md row 41, and a crash with `appendfsync everysec`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from .harness import World


def crash_and_come_back(world: World) -> None:
    """With the data of the last SAVE."""
    world.server.kill()
    world.server.start()


def test_jobs_under_way_are_called_once(world: World) -> None:
    """Redis comes back with their messages in the queue; the two workers that run them take them back."""
    world.start_redis()
    workers = [world.start_worker(concurrency=10, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
        worker.signal(signal.SIGSTOP)  # so that both begin at once: the calls of one would end while the other starts
    jobs = world.submit(16, model="slower")
    world.redis.save()
    for worker in workers:
        worker.signal(signal.SIGCONT)
    world.wait_in_flight(jobs, model="slower")
    crash_and_come_back(world)
    results = world.results(jobs)
    assert [(result.status, result.suspected_double_payment) for result in results] == [("succeeded", False)] * 16
    assert world.calls(jobs, model="slower") == [1] * 16
    world.wait_clean()
    assert all(worker.is_alive() for worker in workers)


def test_a_job_that_redis_lost_whole_is_answered_under_its_id(world: World) -> None:
    world.start_redis()
    world.redis.save()
    world.start_worker(concurrency=10)
    jobs = world.submit(5, model="slower")
    world.wait_in_flight(jobs, model="slower")
    crash_and_come_back(world)
    assert [result.status for result in world.results(jobs)] == ["succeeded"] * 5
    assert [job.status() for job in jobs] == ["succeeded"] * 5
    assert world.calls(jobs, model="slower") == [1] * 5
    world.wait_clean()


@pytest.mark.promise(41)
def test_jobs_whose_ends_are_lost_are_flagged(world: World) -> None:
    """They were answered and acknowledged; Redis comes back with their messages in the queue."""
    world.start_redis()
    jobs = world.submit(8, model="quick")
    world.redis.save()
    world.start_worker(concurrency=10)
    world.results(jobs)
    wait_until(lambda: not world.redis.exists("unacked"), "all are acknowledged")
    crash_and_come_back(world)
    wait_until(lambda: world.calls(jobs, model="quick") == [2] * 8, "they are called again")
    assert [result.suspected_double_payment for result in world.results(jobs)] == [True] * 8
    world.wait_clean()


@pytest.mark.promise(41)
def test_results_that_a_replica_missed_are_not_acknowledged(world: World) -> None:
    """It has the leases and takes over while the acknowledgements wait in the worker."""
    master = world.start_redis()
    replica = world.enter(RedisServer(world.directory / "replica", f"replicaof 127.0.0.1 {master.port}"))
    wait_until(lambda: world.redis.info("replication")["connected_slaves"] == 1, "the replica follows")
    proxy = world.start_proxy()
    world.start_worker(concurrency=30, url=f"redis://127.0.0.1:{proxy.port}/0", lease_s=6.0)
    jobs = world.submit(20, model="slower")
    world.wait_in_flight(jobs, model="slower")
    held_up = world.celery().send_task("tests.system.faults.app.hold_up", args=[7.0])
    world.wait_started(held_up.id)
    assert world.redis.execute_command("WAIT", 1, 10_000) == 1
    promoted = world.enter(replica.client())
    promoted.replicaof("NO", "ONE")
    world.results(jobs)
    assert world.redis.hlen("unacked") >= 20, "no acknowledgement is said yet"
    proxy.move(replica.port)
    world.redis = promoted
    results = world.results(jobs)
    assert [(result.status, result.suspected_double_payment) for result in results] == [("succeeded", True)] * 20
    assert world.calls(jobs, model="slower") == [2] * 20
    world.wait_clean()


def test_results_in_another_redis_wait_until_a_replica_has_them(world: World) -> None:
    """It is behind when it takes over, and would have no results of jobs whose messages the queue has forgotten."""
    world.start_redis()
    master: RedisServer = world.enter(RedisServer(world.directory / "results"))
    address, link = world.enter(Proxy(master.port)), world.enter(Proxy(master.port))
    replica = world.enter(RedisServer(world.directory / "replica", f"replicaof 127.0.0.1 {link.port}"))
    with master.client() as client:
        wait_until(lambda: client.info("replication").get("slave0", {}).get("state") == "online", "the replica follows")
        client.config_set("min-replicas-to-write", 1)
    worker = world.start_worker(environ={"PROMPTMILL_RESULT_URL": f"redis://127.0.0.1:{address.port}/0"})
    link.set("black_hole")
    jobs = world.submit(8, model="quick")
    world.wait_in_flight(jobs, model="quick")
    worker.wait_logged("Redis does not take results (network:Unreplicated)")
    assert world.redis.hlen("unacked") == 8
    with replica.client() as promoted:
        promoted.replicaof("NO", "ONE")
        address.move(replica.port)
        results = [f"celery-task-meta-{job.id}" for job in jobs]
        wait_until(lambda: promoted.exists(*results) == 8, "all results are there")
    assert world.calls(jobs, model="quick") == [1] * 8
    world.wait_clean()
