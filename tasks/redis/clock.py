"""A clock that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

__all__ = ["steady_s"]

# It goes on while the machine is suspended, as Redis's clock does; Python's monotonic clock does not, on Linux.
_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)

steady_s: Final[Callable[[], float]] = time.monotonic if _BOOT is None else partial(time.clock_gettime, _BOOT)
"""Seconds since some instant. A worker asks six times a job, so there is no Python function between."""
