"""A Celery worker as a process, for the harnesses of `tests/system`."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .fork_server import ForkedWorker
from .waiting import PATIENCE_S, wait_until

__all__ = ["CeleryWorker", "lists_of"]

PRIORITY_SEPARATOR = "\x06\x16"
"""kombu's, between a queue's name and a priority."""


def lists_of(redis: Any, queue: str) -> Iterator[str]:
    """The lists in which the queue's messages wait, one for each priority. `redis` decodes its replies."""
    yield queue
    yield from redis.scan_iter(f"{queue}{PRIORITY_SEPARATOR}*")


class CeleryWorker:
    """A worker's process and its log. Subclasses say when it is ready."""

    def __init__(self, name: str, process: subprocess.Popen[bytes] | ForkedWorker, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def wait_exit(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code, or minus the signal's number."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not exit in {timeout_s} s:\n{self.log_text()[-3000:]}") from None

    def wait_logged(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log_text().count(text) >= times, f"{self.name} logs {text!r} {times} times")

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")
