"""The workers that a soak strikes."""

from __future__ import annotations

import signal
import time
from typing import Any

from .harness import Worker, World

__all__ = ["LEASE_S", "Fleet"]

LEASE_S = 6.0
"""From a worker's last heartbeat on; then its jobs are given back."""


class Fleet:
    """Workers that are started again when they die. `options` are `World.start_worker`'s."""

    def __init__(self, world: World, *, size: int, lease_s: float = LEASE_S, **options: Any) -> None:
        self._world = world
        self._options = {"lease_s": lease_s, **options}
        self.workers = [self._start() for _ in range(size)]
        for worker in self.workers:
            worker.wait_ready()

    def _start(self) -> Worker:
        return self._world.start_worker(wait=False, **self._options)

    def kill(self, number: int) -> None:
        self.workers[number].kill()
        self.workers[number] = self._start().wait_ready()

    def freeze(self, number: int, seconds: float) -> None:
        self.workers[number].signal(signal.SIGSTOP)
        time.sleep(seconds)  # the fault itself: nothing is waited for
        self.workers[number].signal(signal.SIGCONT)
