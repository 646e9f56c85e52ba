"""A model whose limit is used up, in the same worker as one that is free."""

from __future__ import annotations

import pytest

from tests.support.waiting import wait_until

from .harness import MESSAGES, Worker, World

PLACES = 4


def start_worker(world: World, *, rpm: int) -> Worker:
    world.start_redis()
    catalogue = world.directory / "limited.toml"
    limited = f'[models.limited]\nprovider = "quick"\nlimits = {{ rpm = {rpm} }}\n'
    catalogue.write_text(f"{world.providers.catalog.read_text()}\n{limited}")
    environ = {"PROMPTMILL_CATALOG": str(catalogue), "PROMPTMILL_LIMIT__PARK_AFTER_S": "0.5"}
    return world.start_worker(concurrency=PLACES, environ=environ)


def parked(world: World) -> int:
    return int(world.redis.zcard("pm:delayed:prompts"))


@pytest.mark.covers("setting", "limit.park_after_s")
def test_jobs_far_from_their_turn_wait_in_redis(world: World) -> None:
    worker = start_worker(world, rpm=300)
    limited = world.submit(30, model="limited")
    wait_until(lambda: parked(world), "a job is parked")
    free = world.submit(3 * PLACES, model="quick")

    assert all(result.ok for result in world.results(free))
    assert world.count_ended(limited) < len(limited)
    assert all(result.ok and result.attempts == 1 for result in world.results(limited))
    assert world.calls(limited, model="quick") == [1] * len(limited)
    world.wait_clean()
    assert "Traceback" not in worker.log_text()


def test_jobs_behind_a_parked_one_are_not_started_to_be_parked(world: World) -> None:
    worker = start_worker(world, rpm=60)
    world.queue.submit_many({"model": "limited", "messages": MESSAGES} for _ in range(400))
    wait_until(lambda: parked(world) > 380, "nearly all are parked")
    (stats,) = world.celery().control.inspect([worker.name], timeout=10).stats().values()
    assert 0 < stats["total"]["prompts.chat"] < 100
