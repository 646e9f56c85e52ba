"""Stock Celery and Promptmill take over each other's queue, and leave nothing behind."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from .harness import World

NAPS = 12


def send(world: World, *, seconds: float) -> list[AsyncResult]:
    client = world.celery()
    return [client.send_task("tests.system.faults.app.nap", args=[seconds]) for _ in range(NAPS)]


def assert_all_end(world: World, naps: list[AsyncResult], *, most_starts: int = 1) -> None:
    wait_until(lambda: all(nap.successful() for nap in naps), "all naps end")
    starts = [len(world.starts(nap.id)) for nap in naps]
    assert min(starts) == 1 and max(starts) <= most_starts
    wait_until(lambda: world.queued() + world.redis.hlen("unacked") == 0, "no message is left behind")


def test_each_takes_over_from_the_other_when_stopped(world: World) -> None:
    world.start_redis()
    naps = send(world, seconds=0.4)
    ours = world.start_worker(concurrency=4)
    wait_until(lambda: any(nap.successful() for nap in naps), "ours has begun")
    ours.signal(signal.SIGTERM)
    ours.wait_exit()
    naps += send(world, seconds=0.4)
    stock = world.start_stock_worker()
    wait_until(lambda: sum(nap.successful() for nap in naps) > 8, "stock goes on")
    stock.signal(signal.SIGTERM)
    stock.wait_exit()
    world.start_worker(concurrency=4)
    assert_all_end(world, naps)
    world.wait_clean()


def test_stock_restores_what_a_killed_worker_of_ours_had(world: World) -> None:
    world.start_redis()
    naps = send(world, seconds=0.8)
    ours = world.start_worker(concurrency=4)
    wait_until(lambda: world.redis.hlen("unacked") == 4, "ours has taken some")
    ours.kill()
    world.start_stock_worker(visibility_timeout=2, unacked_restore_interval=1, unacked_restore_throttle=1)
    assert_all_end(world, naps, most_starts=2)
    # Ours, back again, finds leases of messages that are long done, and forgets them.
    world.start_worker(concurrency=4)
    world.wait_clean()


def test_ours_restores_what_a_killed_stock_worker_had(world: World) -> None:
    world.start_redis()
    naps = send(world, seconds=0.8)
    stock = world.start_stock_worker()
    wait_until(lambda: world.redis.hlen("unacked") >= 4, "stock has taken some")
    stock.kill()
    options: dict[str, Any] = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    for _ in range(2):
        world.start_worker(concurrency=4, wait=False, **options)
    assert_all_end(world, naps, most_starts=2)
    world.wait_clean()
