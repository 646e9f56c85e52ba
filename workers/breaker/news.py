"""What people read of an outage: in the worker's log, and in front of `promptmill run`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..telemetry.notices import notices

if TYPE_CHECKING:
    from .health import Health, Target
    from .outage import Outage

__all__ = ["tell_began", "tell_over"]

logger = logging.getLogger("promptmill.breaker")

ADVICE = (
    "They go on by themselves. Is it this machine's network? "
    "Behind a proxy, set PROMPTMILL_HTTP__PROXY and start again."
)


def tell_began(health: Health, outage: Outage) -> None:
    """An outage has begun, or another pause of it."""
    provider, why = health.target.provider, outage.reason.message
    if outage.kind == "unreachable":
        waiting = f"Provider {provider} ({health.address}) can't be reached ({why}); its jobs wait"
        logger.warning("%s, and one tries again in %g s", waiting, outage.pause_s)
        notices.tell("unreachable", provider, f"{waiting}. {ADVICE}", lasts_s=outage.pause_s)
        return
    whose = "" if outage.kind == "open" else ", as far as this worker sees"
    failing = f"Provider {provider} ({health.address}) fails for {health.target.model}{whose} ({why}); its jobs wait"
    logger.warning("%s, and one tries again in %g s", failing, outage.pause_s)
    notices.tell("failing", str(health.target), f"{failing} and go on by themselves.", lasts_s=outage.pause_s)


def tell_over(target: Target, outage: Outage, *, after_s: float) -> None:
    """An outage is over, after so many seconds."""
    if outage.kind == "unreachable":
        logger.info("Provider %s is reached again, after %.0f s", target.provider, after_s)
    else:
        logger.info("Provider %s works again for %s, after %.0f s", target.provider, target.model, after_s)
