"""A job that has ended is not run again, although its worker died before it acknowledged and its result was deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks import PromptQueue
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer

from .broker import Broker, message

ENDED = b'{"status": "SUCCESS", "result": {}}'


@pytest.fixture
def queue(server: RedisServer) -> Iterator[Any]:
    queue = PromptQueue(server.url)
    yield queue.sync
    queue.sync.close()


@pytest.fixture
def doomed(client: Any) -> Broker:
    """A worker that has died: the leases that it took have ended."""
    return Broker(client, lease_s=-1.0)


@pytest.fixture
def job(client: Any, doomed: Broker) -> str:
    """The id of a submitted job, which the doomed worker has taken."""
    client.hset(redis_keys.job("a"), mapping={"state": "queued", "tenant": ""})
    doomed.put(message("a"))
    ((tag, _),) = doomed.take()
    doomed.leases.start(tag, "a", has_record=True)
    return "a"


def end(client: Any, job: str) -> None:
    client.set(redis_keys.result(job), ENDED)


@pytest.mark.parametrize("is_start_told", [True, False])
def test_an_ended_job_does_not_come_back(
    broker: Broker, doomed: Broker, client: Any, queue: Any, job: str, is_start_told: bool
) -> None:
    if is_start_told:
        doomed.exchange("q", room=0)
    end(client, job)
    queue.forget(job)
    reply = broker.heartbeat()
    assert (reply[2], broker.waiting()) == (0, [])
    assert not client.exists("unacked", redis_keys.LEASES, redis_keys.FORGOTTEN, redis_keys.result(job))


def test_an_ended_job_whose_message_is_back_is_not_taken(broker: Broker, client: Any, queue: Any, job: str) -> None:
    end(client, job)
    assert broker.heartbeat()[2] == 1
    queue.forget(job)
    broker.put(message("b"))
    assert [message("b")] == [raw for _, raw in broker.take()]
    assert not client.exists(redis_keys.FORGOTTEN)


def test_a_start_that_is_told_late_makes_no_record(doomed: Broker, client: Any, queue: Any, job: str) -> None:
    end(client, job)
    queue.forget(job)
    doomed.exchange("q", room=0)
    assert not client.exists(redis_keys.job(job))


def test_an_acknowledged_job_leaves_nothing(doomed: Broker, client: Any, queue: Any, job: str) -> None:
    doomed.exchange("q", room=0)
    end(client, job)
    for tag in tuple(doomed.leases.held):
        doomed.leases.ack(tag)
    doomed.exchange("q", room=0)
    queue.forget(job)
    assert client.keys("pm:*") == [redis_keys.FENCE.encode()]


def test_a_job_that_has_not_ended_comes_back(broker: Broker, client: Any, queue: Any, job: str) -> None:
    queue.forget(job)
    assert broker.heartbeat()[2] == 1
    assert len(broker.waiting()) == 1


def test_an_id_submitted_again_is_run_again(broker: Broker, client: Any, queue: Any, job: str) -> None:
    end(client, job)
    queue.forget(job)
    assert client.exists(redis_keys.FORGOTTEN)
    queue.submit(model="m", messages=[{"role": "user", "content": "Hello"}], id=job)
    assert not client.exists(redis_keys.FORGOTTEN)
    assert len(broker.take(redis_keys.QUEUE)) == 1
