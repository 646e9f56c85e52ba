"""A job's record, which keeps its id from being called again, is not gone before its result."""

from __future__ import annotations

import pytest

from tasks.wire import redis_keys

from .harness import RedisServer, World, wait_until

WEEK_S = 7 * 86_400


@pytest.mark.parametrize("are_results_apart", [False, True], ids=["one Redis", "two"])
def test_a_record_lives_as_long_as_its_result(world: World, are_results_apart: bool) -> None:
    world.start_redis()
    results = world.enter(RedisServer(world.directory / "results")) if are_results_apart else world.server
    world.start_worker(environ={"PROMPTMILL_RESULT_EXPIRES_S": str(WEEK_S), "PROMPTMILL_RESULT_URL": results.url})
    (job,) = world.submit(1, model="quick")
    with results.client() as client:
        wait_until(lambda: client.exists(redis_keys.result(job.id)), "its result is stored")
        wait_until(lambda: world.redis.hget(redis_keys.job(job.id), "state") == "running", "its start is recorded")
        assert WEEK_S - 60 < client.ttl(redis_keys.result(job.id)) <= world.redis.ttl(redis_keys.job(job.id))
