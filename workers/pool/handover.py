"""What the two threads hand over to each other: jobs that are to begin on the loop, and what has ended there."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

__all__ = ["CHUNK", "Bell", "Inbox", "Outbox"]

logger = logging.getLogger("promptmill.pool")

T = TypeVar("T")

CHUNK: Final = 64
"""Begun in one turn of the loop. 1,000 jobs in one turn kept every socket waiting for 359 ms."""


class Inbox(Generic[T]):
    """Begins what is put into it, in order, soon."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], begin: Callable[[T], None]) -> None:
        """`call_soon` has something called on the loop's thread, where `begin` is called; any thread may call it."""
        self.waiting: deque[T] = deque()
        """What has not begun. The hub's thread may take it back."""
        self._call_soon = call_soon
        self._begin = begin
        self._is_announced = False

    def __len__(self) -> int:
        return len(self.waiting)

    def put(self, item: T) -> None:
        """Begin it soon. On the hub's thread."""
        self.waiting.append(item)
        if not self._is_announced:
            self._is_announced = True
            self._call_soon(self._begin_some)

    def _begin_some(self) -> None:
        self._is_announced = False
        waiting = self.waiting
        for _ in range(CHUNK):
            try:
                item = waiting.popleft()
            except IndexError:  # the hub may take back what is there
                return
            self._begin(item)
        if waiting:
            self._is_announced = True
            self._call_soon(self._begin_some)


class Bell:
    """Rung on the loop's thread, heard by the hub, which polls it.

    Not `hub.call_soon(deliver)`: what a callback of the hub makes ready in its turn, such as an acknowledgement, waits
    for the next event or timer, up to a second (kombu/asynchronous/hub.py, create_loop). After an event it does not.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def ring(self) -> None:
        with suppress(OSError):
            self._writer.send(b"\0")

    def silence(self) -> None:
        with suppress(OSError):
            self.reader.recv(4096)

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


class Outbox:
    """Calls that one thread leaves for the hub's, which makes them together. The first of them wakes the hub."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], Any]] = deque()
        self._is_announced = False
        self._filled = threading.Event()
        self._bell = Bell()

    def attend(self, hub: Hub) -> None:
        """Have the hub make the calls. To be said again after each reconnect, which resets the hub."""
        hub.add_reader(self._bell.reader, self.empty)

    def post(self, call: Callable[[], Any]) -> None:
        """Leave a call. On the loop's thread."""
        self._calls.append(call)
        if not self._is_announced:
            self._is_announced = True
            self._filled.set()
            self._bell.ring()

    def empty(self) -> None:
        """Make the calls that are there. On the hub's thread."""
        self._bell.silence()
        self._is_announced = False
        self._filled.clear()
        calls = self._calls
        while calls:
            call = calls.popleft()
            try:
                call()
            except Exception:
                logger.exception("Recording a job's end failed")

    def wait(self, timeout_s: float) -> None:
        """Until there is a call, without a hub."""
        self._filled.wait(timeout_s)
