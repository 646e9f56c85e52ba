"""The slots that one limiter has leased, in the order of their instants, and the timer of the first."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from ..cost import Cost
    from ..waiting.wait_queue import Waiter

__all__ = ["EARLY_S", "Slot", "Slots"]

EARLY_S = 0.001
"""Instants nearer than this are one: a loop's timers are not finer."""


@dataclass(slots=True, eq=False)
class Slot:
    """Due at `due` (monotonic), `instant` in the schedule's time. `is_local`: the schedule has not sold it.

    Sized for `cost`, which is its `owner`'s where requests differ in size.
    """

    due: float
    instant: float
    cost: Cost
    owner: Waiter | None = None
    is_local: bool = False


class Slots:
    """A waiter knows whether a slot in here is its own (`has_slot`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[], None]) -> None:
        """`on_due` is called when the first slot is due; it takes what is, and arms the timer again."""
        self._loop = loop
        self._on_due = on_due
        self._slots: deque[Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def last_due(self) -> float:
        """Monotonic; there must be one."""
        return self._slots[-1].due

    def add(self, slot: Slot) -> None:
        """In its place: tokens that come back make slots free before some that were leased earlier."""
        if slot.owner is not None:
            slot.owner.has_slot = True
        place = len(self._slots)
        while place and self._slots[place - 1].due > slot.due:
            place -= 1
        self._slots.insert(place, slot)

    def due(self, now: float) -> Iterator[Slot]:
        """Take out what is due."""
        while self._slots and self._slots[0].due <= now + EARLY_S:
            yield self._released(self._slots.popleft())

    def drain(self) -> Iterator[Slot]:
        """Take out everything."""
        self.disarm()
        while self._slots:
            yield self._released(self._slots.popleft())

    def drop_local(self) -> None:
        """Let go of those that no schedule has sold."""
        for slot in self._slots:
            if slot.is_local:
                self._released(slot)
        self._slots = deque(slot for slot in self._slots if not slot.is_local)

    def arm(self) -> None:
        """Have the timer wait for the first."""
        if not self._slots:
            return
        due = self._slots[0].due
        if self._timer is None or self._timer_due > due:
            self.disarm()
            # Kept beside the handle: uvloop's handle of a time that has come knows no `when`.
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._ring)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._on_due()

    @staticmethod
    def _released(slot: Slot) -> Slot:
        if slot.owner is not None:
            slot.owner.has_slot = False
        return slot
