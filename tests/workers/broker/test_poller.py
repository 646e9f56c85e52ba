"""What the hub is asked to listen to, and what is read though the worker is full."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub

from workers.broker.kombu.poller import HubOfPoller, Poller

Turn = Callable[[], list[int]]


class Client:
    """A connection of a channel's, as kombu's poller knows it."""

    def __init__(self) -> None:
        here, self.far_end = socket.socketpair()
        self.connection: Any = SimpleNamespace(_sock=here)

    def reconnect(self) -> None:
        """Under the number of the socket that is closed."""
        number = self.connection._sock.fileno()
        self.close()
        here, self.far_end = socket.socketpair()
        if here.fileno() != number:
            here, self.far_end = self.far_end, here
        assert here.fileno() == number
        self.connection._sock = here

    def close(self) -> None:
        self.connection._sock.close()
        self.far_end.close()


class Channel:
    """Full. Counts what is read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.qos = SimpleNamespace(can_consume=lambda: False)
        self.handlers = {kind: lambda kind=kind: self.read.append(kind) for kind in ("TAKE", "WAKE", "LISTEN")}


@pytest.fixture
def client() -> Iterator[Client]:
    with closing(Client()) as client:
        yield client


@pytest.fixture
def poller() -> Poller:
    return Poller()


class CountingHub(Hub):  # type: ignore[misc]  # kombu publishes no types
    """Notes what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[int] = []

    def add_reader(self, fds: Any, callback: Any, *args: Any) -> Any:
        self.added.append(fds)
        return super().add_reader(fds, callback, *args)


@pytest.fixture
def hub(poller: Poller) -> Iterator[CountingHub]:
    with closing(CountingHub()) as hub:
        poller.on_poll_init(hub.poller)
        yield hub


@pytest.fixture
def turn(poller: Poller, hub: CountingHub) -> Turn:
    """What kombu does before each sleep; the numbers that were added."""
    ours = HubOfPoller(hub, poller)

    def turn() -> list[int]:
        hub.added.clear()
        for fd in poller.fds:
            ours.add_reader(fd, poller.on_readable, fd)
        return list(hub.added)

    return turn


def test_a_connection_is_added_once(poller: Poller, client: Client, turn: Turn) -> None:
    poller._register(Channel(), client, "TAKE")
    number = client.connection._sock.fileno()
    assert [turn() for _ in range(3)] == [[number], [], []]
    assert list(poller.fds) == [number], "kombu asks for them elsewhere too"


def test_a_new_connection_under_an_old_number_is_added_too(
    poller: Poller, client: Client, turn: Turn, hub: CountingHub
) -> None:
    channel = Channel()
    poller._register(channel, client, "TAKE")
    number = client.connection._sock.fileno()
    turn()
    client.reconnect()
    poller._register(channel, client, "TAKE")
    assert [turn(), turn()] == [[number], []]
    client.far_end.send(b"news")
    hub.run_once()
    assert channel.read == ["TAKE"]


def test_what_the_hub_has_forgotten_is_added_again(
    poller: Poller, client: Client, turn: Turn, hub: CountingHub
) -> None:
    poller._register(Channel(), client, "TAKE")
    number = client.connection._sock.fileno()
    turn()
    hub.remove_reader(number)
    assert turn() == [number]


def test_that_a_connection_is_closed_is_heard_again_and_again(poller: Poller, client: Client, turn: Turn) -> None:
    """By this the consumer learns that it has to reconnect."""
    poller._register(Channel(), client, "TAKE")
    turn()
    client.close()
    for _ in range(2):
        with pytest.raises((OSError, ValueError)):
            turn()


@pytest.mark.parametrize("kind", ["TAKE", "WAKE", "LISTEN"])
def test_a_full_worker_reads_what_it_is_told(poller: Poller, client: Client, kind: str) -> None:
    """Left unread, it would wake the worker's main thread again at once, until a job has ended."""
    channel = Channel()
    poller._register(channel, client, kind)
    poller.on_readable(client.connection._sock.fileno())
    assert channel.read == [kind]
