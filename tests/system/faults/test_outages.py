"""A provider that refuses connections for some seconds, before a real worker."""

from __future__ import annotations

import time

import pytest

from tasks.wire import redis_keys
from tests.support.ports import free_port
from tests.support.waiting import wait_until

from .harness import Provider, World, promptmill

PLACES = 4


@pytest.mark.promise(48)
def test_row_48_no_job_fails_by_an_outage_and_other_models_go_on(world: World) -> None:
    world.start_redis()
    port = free_port()
    catalogue = world.directory / "away.toml"
    away = f'[providers.away]\nbase_url = "http://127.0.0.1:{port}/v1"\n[models.away]\nprovider = "away"\n'
    catalogue.write_text(f"{world.providers.catalog.read_text()}\n{away}")
    environ = {"PROMPTMILL_CATALOG": str(catalogue), "PROMPTMILL_LIMIT__PARK_AFTER_S": "1.5"}
    worker = world.start_worker(concurrency=PLACES, environ=environ)
    waiting = world.submit(100, model="away")
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts") > 90, "jobs are parked")
    free = world.submit(3 * PLACES, model="quick")
    assert all(result.ok for result in world.results(free))
    worker.wait_logged("one tries again in 4 s")
    assert world.count_ended(waiting) == 0

    provider = world.enter(Provider("--port", str(port), "--latency-ms", "20"))
    results = world.results(waiting)
    assert {(result.status, result.attempts, result.failed_attempts) for result in results} == {("succeeded", 1, ())}
    assert sorted(call["job_id"] for call in provider.calls()) == sorted(job.id for job in waiting)
    world.wait_clean()
    assert worker.log_text().count("can't be reached") < 6, "one line for each pause"
    assert "Traceback" not in worker.log_text()


def test_row_28_a_provider_that_fails_stops_all_workers(world: World) -> None:
    world.start_redis()
    provider = world.enter(Provider("--latency-ms", "20"))
    catalogue = world.directory / "failing.toml"
    failing = f'[providers.failing]\nbase_url = "{provider.base_url}"\n[models.failing]\nprovider = "failing"\n'
    catalogue.write_text(f"{world.providers.catalog.read_text()}\n{failing}")
    environ = {
        "PROMPTMILL_CATALOG": str(catalogue),
        "PROMPTMILL_BREAKER__OPEN_S": "1",
        "PROMPTMILL_RETRY__BASE_S": "0.2",
    }
    workers = [world.start_worker(concurrency=PLACES, environ=environ) for _ in range(2)]
    provider.strike({"503": 1.0})
    waiting = world.submit(100, model="failing")
    wait_until(lambda: world.redis.hlen(redis_keys.BREAKERS), "the breaker opens")
    opened_at = time.time()
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts") > 90, "jobs are parked")
    free = world.submit(3 * PLACES, model="quick")
    assert all(result.ok for result in world.results(free)), "another model's jobs have places"
    limits = promptmill({**environ, "PROMPTMILL_REDIS_URL": world.server.url}, "limits")
    assert "failing/failing is out" in limits
    workers[0].wait_logged("one tries again in 4 s")
    probes = [call for call in provider.calls() if call["time"] > opened_at + 1.0]
    assert 1 <= len(probes) <= 3, "one a period, of both workers"
    assert world.count_ended(waiting) == 0

    provider.strike({})
    results = world.results(waiting)
    assert {result.status for result in results} == {"succeeded"}
    world.wait_clean()
    assert all("Traceback" not in worker.log_text() for worker in workers)
