"""A provider that asks for more than a pause: what people read of it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ...telemetry.notices import notices

if TYPE_CHECKING:
    from ..shared.schedule import LimiterName

__all__ = ["long_wait", "tell_long_wait"]

logger = logging.getLogger("promptmill.limiter")


def tell_long_wait(name: LimiterName, left_s: float, *, now: float) -> None:
    """Tell it in the log, and whoever waits for jobs. `now` in epoch seconds."""
    text = long_wait(name, left_s, now=now)
    logger.warning("%s", text)
    notices.tell("long_wait", str(name), text, lasts_s=left_s)


def long_wait(name: LimiterName, left_s: float, *, now: float) -> str:
    """What people read where a provider asks for more than a pause. `now` in epoch seconds."""
    until = datetime.fromtimestamp(now + left_s, UTC)
    return (
        f"Provider {name.provider} asks to wait {round(left_s / 60)} minutes before the next call of {name.model} "
        f"(key {name.fingerprint}). Its jobs wait until {until:%H:%M} UTC, and then one tries. If a quota is used up, "
        "a higher tier or another key ends the wait."
    )
