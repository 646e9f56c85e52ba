"""How the consumer lets go of a message: when it acknowledges, and that nothing is kept of what it gives back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Producer, Queue
from kombu.transport.redis import Channel as KombuChannel

from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.broker.kombu.channel import Channel
from workers.celery.consumer import Consumer
from workers.celery.request import Request
from workers.pool.app import App
from workers.pool.task_pool import TaskPool
from workers.pool.tracer import without_traceback
from workers.prompt.parked import Parked


class Message:
    """One of a channel of this class, which never connects."""

    def __init__(self, channel_class: type[Any]) -> None:
        self.channel = object.__new__(channel_class)
        self.channel.connection = SimpleNamespace(channels=[])
        self.channel._closed = True
        self.said: list[tuple[Any, ...]] = []

    def ack_log_error(self, *args: Any) -> None:
        self.said.append(args)


class Hub:
    """Keeps what it is to do."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)


@pytest.mark.parametrize(
    ("pool", "channel", "at_once"),
    [
        (TaskPool, Channel, True),
        (TaskPool, KombuChannel, False),  # its acknowledgement writes to a socket
        (SimpleNamespace, Channel, False),  # its callbacks may run in any thread
    ],
    ids=["ours", "another transport", "another pool"],
)
def test_an_acknowledgement_waits_for_the_hub_unless_all_is_ours(pool: Any, channel: Any, at_once: bool) -> None:
    consumer = object.__new__(Consumer)
    consumer.hub, consumer.pool = Hub(), pool.__new__(pool)
    message = Message(channel)
    consumer.call_soon_ack(message.ack_log_error, "logger", ())
    assert (message.said, len(consumer.hub.soon)) == (([("logger", ())], 0) if at_once else ([], 1))
    for callback in consumer.hub.soon:
        callback()
    assert message.said == [("logger", ())]


@pytest.fixture
def channel(server: RedisServer, client: Any) -> Iterator[Channel]:
    with Connection(f"redis://127.0.0.1:{server.port}/0", transport="workers.broker:Transport") as connection:
        yield connection.default_channel
        connection.default_channel.pool.disconnect()  # kombu leaves it to the garbage collector


def test_nothing_is_kept_of_a_message_that_was_postponed(channel: Channel, client: Any) -> None:
    app = App("postponing", set_as_current=False)

    @app.task(name="t", shared=False)
    def task(text: str) -> str:
        return text

    queue = Queue("q", routing_key="q")(channel)
    queue.declare()
    headers = {"id": "1", "task": "t", "lang": "py"}
    Producer(channel).publish([["a prompt"], {}, {}], routing_key="q", exchange="", headers=headers)
    message = queue.get()
    request = Request(message, app=app, task=task, hostname="w", decoded=False)
    assert request.on_failure(without_traceback(Parked(4e9, "its turn is far away"))) is None
    seen = weakref.ref(message)
    del message, request
    gc.collect()
    assert seen() is None
    channel.flush()
    assert client.zcard(redis_keys.delayed("q")) == 1
