"""What is believed of the sentinels, and what becomes of connections to a former master."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from tasks.redis import master_watch
from tasks.redis.master_watch import Master, MasterWatch
from tasks.redis.sentinel.pools import _refusal

HERE, THERE = ("a", 6379), ("b", 6379)
ONE, OTHER = ("sentinel", 1), ("sentinel", 2)


@dataclass
class Listener:
    """Sentinels that say nothing."""

    waits: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        self.waits.wait(0.01)

    def close(self) -> None:
        self.closed.set()


class Connection:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.raw_socket: Any
        self.raw_socket, self.peer = socket.socketpair()
        self.raw_socket.settimeout(0.0)

    @property
    def is_cut(self) -> bool:
        try:
            return bool(self.raw_socket.recv(1) == b"")
        except BlockingIOError:
            return False

    def close(self) -> None:
        if self.raw_socket is not None:
            self.raw_socket.close()
            self.raw_socket = None
        self.peer.close()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def watch(listener: Listener) -> MasterWatch:
    return MasterWatch(listener)


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection(*HERE)
    yield connection
    connection.close()


def test_a_change_cuts_what_leads_to_the_former_master(watch: MasterWatch, connection: Connection) -> None:
    assert watch.learn(Master(*HERE, epoch=1), said_by=ONE)
    watch.admit(connection)
    assert watch.learn(Master(*HERE, epoch=1), said_by=OTHER)
    assert not connection.is_cut
    assert watch.learn(Master(*THERE, epoch=2), said_by=ONE)
    assert connection.is_cut


def test_a_sentinel_that_is_behind_is_not_believed(watch: MasterWatch, connection: Connection) -> None:
    assert watch.learn(Master(*HERE, epoch=2), said_by=ONE)
    watch.admit(connection)
    assert not watch.learn(Master(*THERE, epoch=1), said_by=OTHER)
    assert not connection.is_cut


def test_sentinels_that_count_anew_are_believed_without_others(
    watch: MasterWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch.learn(Master(*HERE, epoch=7), said_by=ONE)
    monkeypatch.setattr(master_watch, "BELIEVED_S", 0.0)
    assert watch.learn(Master(*THERE, epoch=0), said_by=ONE)


def test_a_connection_made_to_a_former_master_is_refused(watch: MasterWatch, connection: Connection) -> None:
    assert watch.learn(Master(*THERE, epoch=2), said_by=ONE)
    with pytest.raises(redis.ConnectionError, match="replaced"):
        watch.admit(connection)


def test_from_a_failover_on_the_master_is_left_for_good(watch: MasterWatch, connection: Connection) -> None:
    assert watch.learn(Master(*HERE, epoch=1), said_by=ONE)
    watch.admit(connection)
    watch.expect_another(HERE, said_by=ONE)
    assert connection.is_cut
    assert not watch.learn(Master(*HERE, epoch=1), said_by=OTHER), "it has not heard of it"
    with pytest.raises(redis.ConnectionError, match="replaced"):
        watch.admit(connection)
    assert watch.learn(Master(*HERE, epoch=1), said_by=ONE), "the failover was given up"
    watch.admit(connection)


def test_a_failover_that_nobody_ends_is_forgotten(
    watch: MasterWatch, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_watch, "FAILOVER_S", 0.0)
    watch.expect_another(HERE, said_by=ONE)
    assert watch.learn(Master(*HERE, epoch=1), said_by=OTHER)
    watch.admit(connection)


def test_the_thread_ends_with_the_last_connection(
    watch: MasterWatch, listener: Listener, connection: Connection
) -> None:
    watch.admit(connection)
    thread = watch._thread
    assert thread is not None
    connection.close()
    thread.join(10)
    assert listener.closed.is_set()
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_cut_its_parents_connections(watch: MasterWatch, connection: Connection) -> None:
    watch.admit(connection)
    watch.after_fork()
    assert watch.learn(Master(*THERE, epoch=2), said_by=ONE)
    assert not connection.is_cut


@pytest.mark.parametrize("word", ["READONLY", "NOREPLICAS"])
def test_a_refusal_is_heard_inside_a_scripts_reply_too(word: str) -> None:
    text = f"Error running script (call to f_0): @user_script:3: -{word} Not enough good replicas to write."
    assert _refusal(redis.ResponseError(text)) is not None
    assert _refusal(redis.ResponseError("ERR wrong number of arguments")) is None
