"""Whatever a process holds runs, is on its way to run, or on its way back."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as worker_state
from kombu import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.broker.compression import MAX_BODY_BYTES
from workers.broker.kombu.channel import Channel
from workers.broker.leases import Lease, Leases
from workers.broker.messages import read
from workers.celery.lease_heartbeat import Heartbeat
from workers.results.endings import Endings
from workers.telemetry.counts import counts

from .broker import Broker, message


@pytest.fixture
def channel(server: RedisServer, client: Any) -> Iterator[Channel]:
    """An open channel, and three messages in its queue: a, b, c."""
    for name in ("a", "b", "c"):
        client.lpush("q", message(name))
    with Connection(server.url, transport="workers.broker:Transport") as connection:
        channel = connection.default_channel
        channel.leases.held.clear()
        yield channel
        channel.leases.held.clear()


def consume(channel: Channel, callback: Any) -> None:
    channel.basic_consume("q", no_ack=False, callback=callback, consumer_tag="here")


def take(channel: Channel) -> None:
    channel._has_taken = True
    command = channel.commands.exchange(["q"], channel._lists, room=10, then=channel._on_taken_alone)
    channel.direct.run(command)


def waiting(client: Any) -> list[str]:
    """Ids of those in the queue, the next to be taken first."""
    return [_id(raw) for raw in client.lrange("q", 0, -1)[::-1]]


def _id(raw: bytes) -> str:
    return str(json.loads(raw)["headers"]["id"])


def test_an_error_in_mid_delivery_leaves_no_message_behind(channel: Channel, client: Any) -> None:
    def callback(delivered: Any) -> None:
        if delivered.headers["id"] == "b":
            raise RedisConnectionError("the results' Redis is away")

    consume(channel, callback)
    take(channel)
    with pytest.raises(RedisConnectionError):
        channel._deliver_taken()
    assert [_id(lease.raw) for lease in channel.leases.held.values()] == ["a", "c"], "b is on its way back"
    channel.close()
    assert sorted(waiting(client)) == ["a", "b", "c"]
    assert not channel.leases.held
    assert not client.exists("unacked", "unacked_index", redis_keys.LEASES)


def test_an_answer_on_its_way_outlives_the_connection(channel: Channel, client: Any) -> None:
    seen: list[Any] = []
    consume(channel, seen.append)
    take(channel)
    channel._deliver_taken()
    tag = seen[1].delivery_tag
    channel.leases.answered.add(tag)
    channel.close()
    assert (waiting(client), list(channel.leases.held)) == (["a", "c"], [tag])
    seen[1].ack()
    assert not channel.leases.held
    channel.leases.answered.clear()
    channel.leases.acks.clear()


def test_what_an_error_left_undelivered_is_delivered_next(channel: Channel, client: Any) -> None:
    seen: list[str] = []

    def callback(delivered: Any) -> None:
        seen.append(delivered.headers["id"])
        if len(seen) == 1:
            raise RedisConnectionError("once")

    consume(channel, callback)
    take(channel)
    with pytest.raises(RedisConnectionError):
        channel._deliver_taken()
    channel._deliver_taken()
    assert seen == ["a", "b", "c"]


def test_a_reply_whose_batch_broke_off_is_not_forgotten(channel: Channel, client: Any) -> None:
    """The messages are there, and a later reply of the batch is not: nothing was delivered."""
    take(channel)
    assert len(channel.leases.held) == 3, "renewed from now on"
    channel.close()
    assert waiting(client) == ["a", "b", "c"]


def test_one_by_one_takes_what_is_there_already(channel: Channel, client: Any) -> None:
    take(channel)
    client.lpush("q", message("d"))
    got = [channel.basic_get("q") for _ in range(4)]
    assert [each.headers["id"] for each in got] == ["a", "b", "c", "d"]
    assert channel.basic_get("q") is None


def test_a_message_that_nobody_consumes_goes_back(channel: Channel, client: Any) -> None:
    take(channel)
    channel._deliver_taken()
    assert not channel.leases.held
    channel.flush()
    assert sorted(waiting(client)) == ["a", "b", "c"]


class Worker:
    """A consumer, as far as the heartbeat knows it."""

    def __init__(self, channel: Any, *, pool: Any = None) -> None:
        self.task_consumer = SimpleNamespace(channel=channel, consuming_from=lambda queue: queue == "q")
        self.task_buckets: dict[str, Any] = {"limited": SimpleNamespace(contents=deque()), "free": None}
        self.pool = pool or SimpleNamespace(requests_to_start=list)


class Request:
    """A request of Celery's: hashable, and weakly referenced."""

    def __init__(self, tag: str) -> None:
        self.message = SimpleNamespace(delivery_tag=tag)


class Consumed:
    """A channel of the user's own, whose consumer takes its time."""

    def __init__(self, *tags: str) -> None:
        self.delivered = list(tags)


@pytest.fixture
def heartbeat() -> Heartbeat:
    return Heartbeat(SimpleNamespace())


def look_twice(heartbeat: Heartbeat, worker: Worker) -> None:
    heartbeat._hand_back_strays(worker, worker.task_consumer.channel, every_s=0.002)
    returned = len(worker.task_consumer.channel.leases.returns)
    assert returned == 0, "it may be on its way just now"
    time.sleep(0.002)
    heartbeat._hand_back_strays(worker, worker.task_consumer.channel, every_s=0.002)


def test_what_is_held_and_not_run_goes_back_at_the_second_look(heartbeat: Heartbeat) -> None:
    leases = Leases()
    channel: Any = SimpleNamespace(leases=leases, delivered=["delivered", "dropped"])
    others = [Request(tag) for tag in ("active", "scheduled", "limited", "in line", "reserved")]
    active, scheduled, limited, in_line, reserved = others
    users = Consumed("a user's")
    leases.channels.add(users)
    tags = ("active", "scheduled", "limited", "in line", "a user's", "ending", "reserved", "dropped", "undelivered")
    leases.held = {tag: Lease(tag, "q", b"{}") for tag in tags}
    leases.held["delivered"] = Lease("delivered", "a step's own", b"{}")
    leases.held["dropped"].started = True
    leases.ending.add("ending")
    worker = Worker(channel, pool=SimpleNamespace(requests_to_start=lambda: [in_line]))
    worker.task_buckets["limited"].contents.append((limited, 1))
    worker_state.active_requests.add(active)
    worker_state.scheduled_requests.add(scheduled)
    worker_state.reserved_requests.add(reserved)
    try:
        look_twice(heartbeat, worker)
        heartbeat._hand_back_strays(worker, channel, every_s=0.002)
    finally:
        for request in others:
            worker_state.active_requests.discard(request)
            worker_state.scheduled_requests.discard(request)
            worker_state.reserved_requests.discard(request)
    assert sorted(lease.tag for lease in leases.returns) == ["dropped", "reserved", "undelivered"]
    assert dict(counts.take()) == {"stray_leases_total:unstarted": 2, "stray_leases_total:started": 1}


def test_another_pool_knows_itself_what_it_is_going_to_start(heartbeat: Heartbeat) -> None:
    leases = Leases()
    leases.held = {"reserved": Lease("reserved", "q", b"{}")}
    channel = SimpleNamespace(leases=leases, delivered=["reserved"])
    request = Request("reserved")
    worker_state.reserved_requests.add(request)
    look_twice(heartbeat, Worker(channel, pool=SimpleNamespace()))
    worker_state.reserved_requests.discard(request)
    assert not leases.returns


@pytest.mark.parametrize(("started", "past"), [(False, (0, False)), (True, (1, True))])
def test_a_stray_that_had_started_counts_a_delivery(broker: Broker, started: bool, past: tuple[int, bool]) -> None:
    """Or a job that its worker loses sight of each time would be called for ever."""
    broker.put(message("a"))
    ((tag, _),) = broker.take()
    if started:
        broker.leases.start(tag, "a")
    assert broker.leases.hand_back_strays([tag, "unheld"]) == 1
    counts.take()
    broker.say_news()
    [raw] = broker.waiting()
    assert (read(raw).deliveries, read(raw).suspected) == past


def test_ends_are_stored_in_order_and_reported_on_the_hub() -> None:
    reports: list[Exception | None] = []
    endings = Endings()
    problem = RedisConnectionError("away")

    def fail() -> None:
        raise problem

    for store in (lambda: None, fail, lambda: None):
        endings.put(store, reports.append)
    deadline = time.monotonic() + 20
    while len(reports) < 3:
        assert time.monotonic() < deadline
        endings.bell.reader.setblocking(True)
        endings.deliver()
    endings.bell.close()
    assert reports == [None, problem, None]


def given_back(name: str, deliveries: int) -> bytes:
    """The message of a job whose worker died."""
    return message(name)[:-1] + f', "promptmill": {{"deliveries": {deliveries}, "suspected": 1}}}}'.encode()


@pytest.mark.parametrize(("deliveries", "together"), [(1, 10), (2, 2), (3, 1), (4, 1)])
def test_what_its_worker_died_of_comes_in_smaller_portions(
    channel: Channel, client: Any, deliveries: int, together: int
) -> None:
    """40 places. The rest wait, and hold up none of those behind them."""
    client.delete("q")
    channel.basic_qos(0, 40, False)
    client.lpush("q", *(given_back(f"{n}", deliveries) for n in range(30)), *(message(f"fresh-{n}") for n in range(9)))
    seen: list[Any] = []
    consume(channel, seen.append)
    channel._has_taken = True
    channel.direct.run(channel.commands.exchange(["q"], channel._lists, room=40, then=channel._on_taken_alone))
    channel._deliver_taken()
    assert len([each for each in seen if not each.headers["id"].startswith("fresh")]) == together
    assert len(seen) == together + 9
    channel.flush()
    assert client.zcard(redis_keys.delayed("q")) == 30 - together
    for each in seen:
        each.ack()
    channel.flush()
    client.zadd(redis_keys.delayed("q"), dict.fromkeys(client.zrange(redis_keys.delayed("q"), 0, -1), 1))
    seen.clear()
    channel.direct.run(channel.commands.exchange(["q"], channel._lists, room=40, then=channel._on_taken_alone))
    channel._deliver_taken()
    assert len(seen) == min(together, 30 - together), "the next portion"
    channel.close()


def test_a_body_that_unfolds_to_gigabytes_is_buried_unread(channel: Channel, client: Any) -> None:
    seen: list[Any] = []
    consume(channel, seen.append)
    bomb = base64.b64encode(zlib.compress(b"\0" * (MAX_BODY_BYTES + 1))).decode()
    raw = json.loads(message("bomb", body=bomb, compression="application/x-gzip"))
    raw["properties"]["body_encoding"] = "base64"
    client.rpush("q", json.dumps(raw))
    take(channel)
    channel._deliver_taken()
    assert [each.headers["id"] for each in seen] == ["a", "b", "c"]
    [grave] = channel.leases.graves
    assert (grave.kind, grave.reason) == ("unreadable", "its compressed body unfolds to more than 64 MB")
    channel.leases.graves.clear()
