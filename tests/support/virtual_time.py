"""Time that passes only when everybody sleeps: hours in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

__all__ = ["VirtualLoop", "VirtualTime", "run_virtually"]


@dataclass
class VirtualTime:
    """A clock that only a sleep moves."""

    now_s: float = 1_000_000.0
    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        assert timeout is not None, "everybody waits for something that will never come"
        self.now_s += max(timeout, 1e-6)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def skip(self, seconds: float) -> None:
        """Nothing runs for so long, as after SIGSTOP."""
        self._virtual.now_s += seconds


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """Hours in milliseconds."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.wait_for(main, 100_000))
