"""A worker holds nothing that it does not run: promises.md row 39, and other ways to drop a message."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tasks import PromptQueue
from tasks.wire.record import read_outcome
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

from .harness import MESSAGES
from .test_redis_suffers import AOF_ALWAYS

if TYPE_CHECKING:
    from .harness import World


@pytest.mark.promise(39)
@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_an_end_that_redis_does_not_take_holds_up_no_other(world: World, end: str) -> None:
    """One take brings 20 messages; the end of one of them is refused for as long as the results' Redis is away."""
    world.start_redis()
    results = world.enter(RedisServer(world.directory / "results", *AOF_ALWAYS))
    queue = world.enter(PromptQueue(world.server.url, result_url=results.url).sync)
    worker = world.start_worker(concurrency=20, environ={"PROMPTMILL_RESULT_URL": results.url})
    worker.signal(signal.SIGSTOP)
    others = [queue.submit(model="quick", messages=MESSAGES) for _ in range(19)]
    (message,) = [raw for raw in world.redis.lrange("prompts\x06\x163", 0, -1) if others[6].id in raw]
    ended_id = f"{end}-{others[0].id}"
    message = message.replace(others[6].id, ended_id)
    if end == "expired":
        message = message.replace('"expires": null', '"expires": "2020-01-01T00:00:00+00:00"')
    else:
        world.redis.zadd("pm:cancelled", {ended_id: time.time() * 1000})
    assert json.loads(message)["headers"]["id"] == ended_id
    world.redis.rpush("prompts\x06\x163", message)  # the first to be taken
    results.kill()
    worker.signal(signal.SIGCONT)
    world.wait_in_flight(others, model="quick")
    worker.wait_logged("Redis did not take the end of job")
    results.start()
    client = world.enter(results.client())

    def record(job_id: str) -> str | None:
        found: str | None = client.get(f"celery-task-meta-{job_id}")
        return found

    wait_until(lambda: all(record(job.id) for job in others), "the others' results are stored")
    outcome = read_outcome(ended_id, wait_until(lambda: record(ended_id), "the end is stored"))
    assert outcome is not None and outcome.status == end
    assert world.calls(others, model="quick") == [1] * 19
    assert ended_id not in world.providers.calls("quick")
    world.wait_clean()


def test_a_job_that_celery_gave_up_comes_back(world: World) -> None:
    """With this setting Celery ends its jobs when a connection is lost, and keeps their messages."""
    world.start_redis()
    setting = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    worker = world.start_worker(concurrency=2, environ={"FAULTS_CELERY": json.dumps(setting)})
    nap = world.celery().send_task("tests.system.faults.app.nap", args=[3.0])
    world.wait_started(nap.id)
    world.redis.client_kill_filter(_type="normal", skipme=True)
    world.wait_started(nap.id, times=2)
    wait_until(nap.successful, "it ends")
    world.wait_clean()
    assert worker.is_alive()
    assert world.redis.hget("pm:counts", "stray_leases_total:started") == "1"
