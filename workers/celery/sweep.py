"""Takes the messages of cancelled jobs out of the delayed ones, a piece at a time (sweep.lua)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from ..broker.cancellations import cancellations
from ..redis.clock import redis_clock

if TYPE_CHECKING:
    from kombu.asynchronous import Hub

    from ..broker.kombu.channel import Channel

__all__ = ["Sweeper"]

PIECE_EVERY_S = 0.05
"""A piece takes Redis some 5 ms."""

AGAIN_S = 1.0
"""After which a sweep that can't begin yet is tried again."""

QUEUE_DONE, OTHERS_TURN, ALL_DONE = -1, -2, -3


class Sweeper:
    """Sweeps the channel's queues when it is asked to. On the hub's thread."""

    def __init__(self, channel: Channel, hub: Hub) -> None:
        self._channel = channel
        self._hub = hub
        self._me = f"{socket.gethostname()}:{os.getpid()}"
        self._wanted_ms: int | None = None
        self._clock_was_set = False
        self._began_for = 0, False
        self.is_sweeping = False
        self._queues: list[str] = []
        self._position = 0

    def want(self, *, clock_was_set: bool = False) -> None:
        """Sweep all queues, from now on."""
        self._wanted_ms = int(redis_clock.redis_s() * 1000)
        self._clock_was_set |= clock_was_set
        if not self.is_sweeping:
            self.is_sweeping = True
            self._later(PIECE_EVERY_S)

    def _later(self, delay_s: float) -> None:
        self._hub.call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        if cancellations.is_ending:  # what is recorded can be deleted; the rest a worker must take
            self._later(AGAIN_S)
            return
        if not self._queues:
            if self._wanted_ms is None or not self._channel.take_queues:
                self.is_sweeping = False
                return
            self._queues, self._position = list(self._channel.take_queues), 0
            self._began_for = self._wanted_ms, self._clock_was_set
            self._wanted_ms, self._clock_was_set = None, False
        wanted_ms, clock_was_set = self._began_for
        command = self._channel.commands.sweep(
            self._queues[0],
            me=self._me,
            position=self._position,
            clock_was_set=clock_was_set,
            wanted_ms=wanted_ms,
            is_last=len(self._queues) == 1,
            on_reply=self._on_reply,
        )
        self._channel.say(command)

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._start_over()
            raise reply
        if reply == OTHERS_TURN:
            self._start_over()
        elif reply == ALL_DONE:
            self._queues = []
            self._later(PIECE_EVERY_S)
        elif reply == QUEUE_DONE:
            self._queues, self._position = self._queues[1:], 0
            self._later(PIECE_EVERY_S)
        else:
            self._position = reply
            self._later(PIECE_EVERY_S)

    def _start_over(self) -> None:
        wanted_ms, clock_was_set = self._began_for
        self._queues = []
        if self._wanted_ms is None:
            self._wanted_ms = wanted_ms
        self._clock_was_set |= clock_was_set
        self._later(AGAIN_S)
