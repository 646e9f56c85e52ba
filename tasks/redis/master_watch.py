"""Who the master is, as far as this process has heard, and its connections to it.

A connection to a master that is replaced notices nothing: until a sentinel makes it a replica, some ten seconds later,
the former master goes on confirming writes, and then throws them away. So as long as there is a connection, a thread
hears of failovers from all sentinels, asks one of them every second besides, and cuts what leads to a former master.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from typing import Any, Final, NamedTuple, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

__all__ = ["Connection", "Listener", "Master", "MasterWatch"]

BELIEVED_S: Final = 30.0
"""A master that no sentinel has confirmed for so long is forgotten: sentinels that were set up anew count the epochs of
their configuration from 0."""

FAILOVER_S: Final = 10.0
"""How long a failover under way keeps everybody from the former master. One that takes longer has failed."""

Address = tuple[str, int]


class Master(NamedTuple):
    """Where a sentinel says that the master is. Each failover has an `epoch`, and the later has the higher."""

    host: str
    port: int
    epoch: int

    @property
    def address(self) -> Address:
        return self.host, self.port


class Connection(Protocol):
    """What is watched: a connection of redis-py's to a host and port."""

    host: str
    port: int

    @property
    def raw_socket(self) -> Any:
        """Its socket while it is open, else None. Called on any thread."""


class Listener(Protocol):
    """Whom the thread has ask the sentinels."""

    def listen(self) -> None:
        """Wait for news, a second at most, and tell them to the watch. Raises nothing of redis's."""

    def close(self) -> None:
        """Close what is open to the sentinels."""


class _Failover(NamedTuple):
    """A sentinel is about to replace the master at `address`."""

    address: Address
    said_by: Address
    ends_at: float


class MasterWatch:
    """One for a process and a master; for threads and event loops alike, since it closes sockets only.

    The thread starts with the first connection and ends when none is open.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._master: Master | None = None
        self._failover: _Failover | None = None
        self._begin()
        _watches.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._heard_at = 0.0
        self._thread: threading.Thread | None = None

    def learn(self, master: Master, *, said_by: Address) -> bool:
        """Take over what a sentinel says, and cut what leads elsewhere; False if others know more than it does."""
        now = time.monotonic()
        with self._lock:
            known, failover = self._master, self._failover
            if known is not None and master.epoch < known.epoch and now - self._heard_at < BELIEVED_S:
                return False
            if failover is not None and failover.address == master.address:
                if failover.said_by != said_by and now < failover.ends_at:
                    return False
                self._failover = None  # it was given up
            self._master, self._heard_at = master, now
        self._cut_former()
        return True

    def expect_another(self, address: Address, *, said_by: Address) -> None:
        """Cut what leads to a master that a sentinel is about to replace: what it confirms from now on may be lost."""
        with self._lock:
            self._failover = _Failover(address, said_by, time.monotonic() + FAILOVER_S)
        self._cut_former()

    @property
    def leader(self) -> Address | None:
        """The sentinel that is about to replace the master."""
        failover = self._failover
        return failover.said_by if failover is not None and time.monotonic() < failover.ends_at else None

    def admit(self, connection: Connection) -> None:
        """Watch a connection that has just been made. Raises ConnectionError if it leads to a former master by now."""
        with self._lock:
            if not self._leads_there(connection):
                raise RedisConnectionError("the master was replaced while the connection to it was made")
            self._connections.add(connection)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="promptmill-master-watch", daemon=True)
                self._thread.start()

    def _cut_former(self) -> None:
        with self._lock:
            former = [each for each in self._connections if not self._leads_there(each)]
        for connection in former:
            _cut(connection.raw_socket)

    def _leads_there(self, connection: Connection) -> bool:
        address = connection.host, connection.port
        failover = self._failover
        if failover is not None and failover.address == address and time.monotonic() < failover.ends_at:
            return False
        return self._master is None or address == self._master.address

    def _watch(self) -> None:
        while self._is_needed():
            self._listener.listen()

    def _is_needed(self) -> bool:
        with self._lock:
            if any(each.raw_socket is not None for each in self._connections):
                return True
            self._listener.close()
            self._thread = None
            return False

    def after_fork(self) -> None:
        """In the child: the parent's thread is not there, and its sockets are not ours to cut."""
        self._begin()


_watches: weakref.WeakSet[MasterWatch] = weakref.WeakSet()


def _after_fork() -> None:
    for watch in tuple(_watches):
        watch.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _cut(open_socket: Any) -> None:
    """End a connection from another thread: whoever reads from it or writes to it hears so at once, a loop too.

    On a twin of the socket, since an event loop's own can't be shut down (uvloop's).
    """
    if open_socket is None:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(open_socket.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)
