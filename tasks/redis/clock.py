"""A clock that nobody sets."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["steady_s"]

# It goes on while the machine is suspended, as Redis's clock does; Python's monotonic clock does not, on Linux.
_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def steady_s() -> float:
    """Seconds since some instant."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)
