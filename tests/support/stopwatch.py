"""Durations of what a thread did and waited for, without the time for which other processes had the processor."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Stopwatch"]


class Stopwatch:
    """Seconds of the calling thread since the start, less those it was ready to run and had no processor.

    Only Linux tells the latter; elsewhere all seconds count.
    """

    def __init__(self) -> None:
        path = "/proc/thread-self/schedstat"
        self._file = os.open(path if Path(path).exists() else os.devnull, os.O_RDONLY)
        self._began_s = self._now_s()

    def _now_s(self) -> float:
        # Nanoseconds on a processor, nanoseconds in wait for one, turns.
        fields = os.pread(self._file, 64, 0).split() or [b"0", b"0", b"0"]
        return time.perf_counter() - int(fields[1]) / 1e9

    @property
    def elapsed_s(self) -> float:
        return self._now_s() - self._began_s

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
