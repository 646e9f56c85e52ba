"""When the consumer acknowledges: at once where it may, else in the hub's next turn, as Celery does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.transport.redis import Channel as KombuChannel

from workers.broker.channel import Channel
from workers.broker.consumer import Consumer
from workers.pool import TaskPool


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
