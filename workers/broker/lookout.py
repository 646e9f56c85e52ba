"""When a channel looks for messages: at once while there are some, else when Redis says so or one is due."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kombu.asynchronous import get_event_loop

from ..redis.clock import redis_clock

if TYPE_CHECKING:
    from .commands import Exchanged

__all__ = ["Lookout"]

IDLE_LOOK_S = 1.0
"""An idle worker looks so often without being told: for messages that are due, and in case a notification was lost."""

POLL_S = 0.2
"""How often an idle worker looks where Redis can't notify it: five commands a second, the most we allow ourselves."""

BUSY_ITEMS = 8
LINGER_S = 0.005
"""After an exchange of at least so many messages, the next one waits so long for company."""

STAND_BACK_S = 0.1
STOOD_BACK_FOR_S = 2.0
MOST_COUNTED = 32
"""A worker that has just left jobs to others looks no oftener, so that a worker that can do them comes first, and takes
no larger share of its free places than it could use of what it took of late."""


class Lookout:
    """Decides when the next exchange is due."""

    def __init__(self) -> None:
        self.may_be_notified = True
        self.is_waiting = False
        """The queues were empty, and whoever can will tell us."""
        self._redis_ms = 0
        self._clock = redis_clock
        self._look_at = 0.0
        self._not_before = 0.0
        self._left_until = 0.0
        self._taken = self._left = self._taken_last = 0

    @property
    def redis_ms(self) -> int:
        """Redis's clock at its last reply. What is due by this one is due."""
        return self._redis_ms

    def heard(self, now_ms: int, *, asked_at: float) -> None:
        """Take in Redis's clock from a reply. `asked_at`: `RedisClock.asked` before the command was sent."""
        self._redis_ms = now_ms
        self._clock.learn(now_ms / 1000, asked_at=asked_at)

    def has_passed(self, at_s: float) -> bool:
        """Whether this instant (epoch seconds) has passed by Redis's clock, and would have if nobody had set it."""
        return at_s < min(self._clock.redis_s(), self._clock())

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() >= self._look_at

    def left(self) -> None:
        """A job that was taken goes back, for another worker: this one can't do it."""
        if not self._left_until:
            self._taken = max(self._taken_last, 1)
        self._left += 1
        self._left_until = time.monotonic() + STOOD_BACK_FOR_S

    def portion(self, room: int) -> int:
        """How many messages to take into so many free places now."""
        if not self._left_until:
            return room
        now = time.monotonic()
        if now >= self._left_until:
            self._left_until, self._left = 0.0, 0
            return room
        if now < self._not_before:
            return 0
        useful = max(self._taken - self._left, 0)
        return min(room, max(1, room * useful // max(self._taken, 1)))

    def now(self) -> None:
        """Look as soon as possible."""
        self.is_waiting = False
        self._look_at = 0.0

    def within(self, delay_s: float) -> None:
        """Look after this time, or earlier if that was planned."""
        self._plan(min(delay_s, max(self._look_at - time.monotonic(), 0.001)))

    def later(self) -> None:
        """Look no more than an idle worker does: Redis is unwell."""
        self._plan(IDLE_LOOK_S)

    def learn(self, exchanged: Exchanged) -> bool:
        """Plan the next look by what the last one brought. True: wait to be told."""
        self.heard(exchanged.now_ms, asked_at=exchanged.asked_at)
        if exchanged.taken:
            self.is_waiting = False
            self._taken_last = len(exchanged.taken)
        if self._left_until and exchanged.room:
            self._stand_back(len(exchanged.taken))
        if exchanged.room == 0 or not exchanged.emptied:
            busy = len(exchanged.taken) + exchanged.acked >= BUSY_ITEMS
            self._plan(LINGER_S if busy else 0.0)
            return False
        if self.is_waiting and not self.is_due:
            return False
        self._wait(exchanged.next_due_ms)
        return True

    def _stand_back(self, taken: int) -> None:
        # Halved now and then, so that what it was like a while ago counts less and less.
        if self._taken > MOST_COUNTED:
            self._taken, self._left = self._taken // 2, self._left // 2
        self._taken += taken
        self._not_before = time.monotonic() + STAND_BACK_S
        hub = get_event_loop()
        if hub is not None:
            hub.call_later(STAND_BACK_S, _nothing)

    def _wait(self, next_due_ms: int | None) -> None:
        look_in_s = IDLE_LOOK_S if self.may_be_notified else POLL_S
        if next_due_ms is not None:
            look_in_s = min(look_in_s, max(next_due_ms - self.redis_ms, 0) / 1000 + 0.001)
        self._plan(look_in_s)
        self.is_waiting = True

    def _plan(self, delay_s: float) -> None:
        self._look_at = time.monotonic() + delay_s
        hub = get_event_loop()
        if hub is not None and delay_s:
            # The hub's poll would sleep through it; a timer ends the poll, and the next tick looks.
            hub.call_later(delay_s, _nothing)


def _nothing() -> None:
    pass
