"""Redis, or the way to it, fails: promises.md rows 6 to 12."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tasks import QueueFull, QueueUnavailable, UnknownJob
from tests.support.waiting import wait_until

from .harness import LEASE_S, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.blocking import SyncJob

    from .harness import World

AOF_ALWAYS = ("appendonly yes", "appendfsync always")


def assert_each_ran_once(world: World, jobs: Sequence[SyncJob], *, model: str) -> None:
    assert [result.status for result in world.results(jobs)] == ["succeeded"] * len(jobs)
    assert world.calls(jobs, model=model) == [1] * len(jobs)
    world.wait_clean()


@pytest.mark.promise(6)
def test_connections_cut_under_load_run_nothing_twice(world: World) -> None:
    world.start_redis()
    workers = [world.start_worker(concurrency=10, wait=False) for _ in range(2)]
    jobs = world.submit(80, model="steady")
    for cut in range(3):
        ended = 15 * (cut + 1)
        world.wait_ended(jobs, ended)
        world.server.cut()
    assert_each_ran_once(world, jobs, model="steady")
    assert all(worker.is_alive() for worker in workers)


@pytest.mark.promise(6)
def test_naps_cut_off_from_redis_run_once(world: World) -> None:
    # The same for tasks of the user's own, whose results are not looked up before they run again.
    world.start_redis()
    world.start_worker(concurrency=5)
    client = world.celery()
    naps = [client.send_task("tests.system.faults.app.nap", args=[0.1 * (n % 7)]) for n in range(40)]
    for cut in range(4):
        ended = 8 * (cut + 1)
        wait_until(partial(_are_ready, naps, ended), f"{ended} naps have ended")
        world.redis.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: all(nap.successful() for nap in naps), "all naps end")
    world.wait_clean()
    assert [len(world.starts(nap.id)) for nap in naps] == [1] * 40


@pytest.mark.promise(7)
@pytest.mark.parametrize("pause_s", [0.8 * LEASE_S, 2.5 * LEASE_S], ids=["within-a-lease", "beyond-a-lease"])
@pytest.mark.parametrize("command", ["DEBUG SLEEP", "CLIENT PAUSE"])
def test_a_redis_that_stands_still_makes_nobody_run_a_job_twice(world: World, command: str, pause_s: float) -> None:
    world.start_redis()
    for worker in [world.start_worker(concurrency=5, wait=False) for _ in range(2)]:
        worker.wait_ready()  # or the first has done its jobs before the second takes any
    jobs = [*world.submit(8, model="slower"), *world.submit(8, model="slow")]
    wait_until(lambda: world.redis.zcard("pm:leases") == 10, "all places are taken")
    if command == "DEBUG SLEEP":
        world.redis.execute_command("DEBUG", "SLEEP", pause_s)
    else:
        world.redis.client_pause(int(pause_s * 1000))
    assert [result.status for result in world.results(jobs)] == ["succeeded"] * 16
    assert world.calls(jobs[:8], model="slower") == [1] * 8
    assert world.calls(jobs[8:], model="slow") == [1] * 8
    world.wait_clean()


@pytest.mark.promise(8)
def test_a_redis_that_crashes_and_comes_back_has_lost_nothing(world: World) -> None:
    world.start_redis(*AOF_ALWAYS)
    workers = [world.start_worker(concurrency=10, wait=False) for _ in range(2)]
    jobs = world.submit(60, model="steady")
    for crash in range(2):
        ended = 15 * (crash + 1)
        world.wait_ended(jobs, ended)
        world.server.kill()
        with pytest.raises(QueueUnavailable):
            world.queue.submit(model="quick", messages=MESSAGES)
        world.server.start()
    assert_each_ran_once(world, jobs, model="steady")
    assert all(worker.is_alive() for worker in workers)


@pytest.mark.promise(8)
def test_workers_wait_for_redis_and_continue_by_themselves(world: World) -> None:
    world.start_redis(*AOF_ALWAYS)
    workers = [world.start_worker(concurrency=2), world.start_worker(concurrency=2)]
    running = world.submit(2, model="slow")
    world.wait_in_flight(running, model="slow")
    world.server.kill()
    for worker in workers:
        # Several attempts, each announced: it goes on trying, at the same pace.
        worker.wait_logged("Cannot connect", 6)
    late = world.start_worker(wait=False)  # nor does one exit that starts now
    late.wait_logged("Cannot connect")
    assert all(worker.is_alive() for worker in (*workers, late))
    world.server.start()
    assert_each_ran_once(world, running, model="slow")
    assert_each_ran_once(world, world.submit(6, model="quick"), model="quick")
    late.wait_ready()


@pytest.mark.promise(9)
def test_callers_of_a_wiped_redis_are_told_and_the_workers_live(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=1)
    running, waiting = world.submit(2, model="slow")
    world.wait_in_flight([running], model="slow")
    world.redis.flushall()
    for job in (running, waiting):
        with pytest.raises(UnknownJob):
            job.result(timeout_s=30)
    worker.wait_logged("leases were lost")
    assert_each_ran_once(world, world.submit(3, model="quick"), model="quick")
    assert worker.is_alive()


def test_scripts_that_redis_has_forgotten_are_loaded_again(world: World) -> None:
    world.start_redis()
    world.start_worker(concurrency=5)
    jobs = world.submit(40, model="quick")
    for _ in range(5):
        world.redis.script_flush()
        jobs += world.submit(5, model="quick")
    assert_each_ran_once(world, jobs, model="quick")


@pytest.mark.promise(10)
@pytest.mark.parametrize("fault", ["refuse", "black_hole", "reset"])
def test_a_link_that_breaks_is_made_again(world: World, fault: str) -> None:
    world.start_redis()
    proxy = world.start_proxy()
    # The other one takes over what only seems to be lost; nobody is to run twice what the first still runs.
    worker = world.start_worker(
        concurrency=4, url=f"redis://127.0.0.1:{proxy.port}/0", socket_timeout=2.0, socket_connect_timeout=1.0
    )
    running = world.submit(4, model="slow")
    world.wait_in_flight(running, model="slow")
    if fault == "reset":
        proxy.reset()
    else:
        proxy.set("refuse" if fault == "refuse" else "black_hole")
        worker.wait_logged("Cannot connect")
        proxy.set("none")
    back_from = time.monotonic()
    jobs = world.submit(8, model="quick")
    assert_each_ran_once(world, running, model="slow")
    assert_each_ran_once(world, jobs, model="quick")
    assert time.monotonic() - back_from < 15
    assert worker.is_alive()


@pytest.mark.promise(10)
def test_a_slow_link_only_takes_longer(world: World) -> None:
    world.start_redis()
    proxy = world.start_proxy()
    world.start_worker(concurrency=4, url=f"redis://127.0.0.1:{proxy.port}/0")
    proxy.set("slow")
    assert_each_ran_once(world, world.submit(12, model="quick"), model="quick")


@pytest.mark.promise(11)
def test_a_full_redis_refuses_jobs_and_is_drained(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=5)
    jobs = world.submit(30, model="quick")
    fill(world)
    with pytest.raises(QueueFull):
        world.queue.submit(model="quick", messages=MESSAGES)
    late = world.start_worker(concurrency=5)  # one that starts now drains too
    assert_each_ran_once(world, jobs, model="quick")
    assert worker.is_alive() and late.is_alive()
    world.redis.config_set("maxmemory", 0)
    assert_each_ran_once(world, world.submit(3, model="quick"), model="quick")


def fill(world: World) -> None:
    """Leave Redis no memory for anything new."""
    world.redis.config_set("maxmemory-policy", "noeviction")
    world.redis.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        world.redis.set("one more", "value")


@pytest.mark.promise(11)
def test_workers_start_on_a_full_redis_and_drain_it(world: World) -> None:
    world.start_redis()
    jobs = world.submit(10, model="quick")
    fill(world)
    world.start_worker(concurrency=5)
    assert_each_ran_once(world, jobs, model="quick")


@pytest.mark.promise(12)
def test_without_free_connections_callers_get_a_named_error(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=2)
    world.queue.close()
    world.redis.config_set("maxclients", 1)
    world.redis.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(QueueUnavailable):
        world.queue.submit(model="quick", messages=MESSAGES)
    worker.wait_logged("max number of clients")
    world.redis.config_set("maxclients", 1000)
    assert_each_ran_once(world, world.submit(3, model="quick"), model="quick")
    assert worker.is_alive()


def _are_ready(naps: Sequence[Any], count: int) -> bool:
    return sum(nap.ready() for nap in naps) >= count
