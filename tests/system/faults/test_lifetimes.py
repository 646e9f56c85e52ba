"""A job's record, which keeps its id from being called again, is not gone before its result."""

from __future__ import annotations

import pytest
import redis

from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

from .harness import World

WEEK_S = 7 * 86_400


@pytest.mark.covers("setting", "result_expires_s", "result_url")
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


@pytest.mark.covers("setting", "result_compress_from_bytes")
@pytest.mark.parametrize(("from_bytes", "is_compressed"), [("1", True), ("0", False)])
def test_results_are_compressed_from_the_size_of_the_setting(
    world: World, from_bytes: str, is_compressed: bool
) -> None:
    world.start_redis()
    world.start_worker(environ={"PROMPTMILL_RESULT_COMPRESS_FROM_BYTES": from_bytes})
    (job,) = world.submit(1, model="quick")
    assert job.result(timeout_s=30).ok
    with redis.Redis.from_url(world.server.url) as client:
        assert client.get(redis_keys.result(job.id)).startswith(b"\0celery-compressed") is is_compressed
