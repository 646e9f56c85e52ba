"""The breakers as they stand, read from Redis by any process, without changing anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tasks.wire import redis_keys

from .health import Target
from .shared import hashes_of, stored_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["BreakerView", "look"]

MOST_SHOWN: Final = 1_000
"""Users may name the models, and each is labels in `promptmill metrics`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """One breaker. Of one that is closed only `opened` counts: how often it has opened.

    `state` is closed, open or probing. `next_probe_s` is how far the next probe is, 0 while it is due or under way.
    """

    provider: str
    model: str
    opened: int
    state: str = "closed"
    open_for_s: float = 0.0
    next_probe_s: float = 0.0
    why: str = ""

    @property
    def is_open(self) -> bool:
        return self.state != "closed"


async def look(redis: Redis, *, key_prefix: str = "") -> list[BreakerView]:
    """All that have ever opened of late. One round trip."""
    keys = redis_keys.BREAKERS, redis_keys.BREAKER_COUNTS
    now, stored, opened = await hashes_of(redis, *(key_prefix + key for key in keys))
    views = []
    for name in sorted({*stored, *opened})[:MOST_SHOWN]:
        target, count = Target(*json.loads(name)), int(opened.get(name, 0))
        text = stored.get(name)
        views.append(_open(target, name, text, now=now, opened=count) if text else _closed(target, count))
    return views


def _closed(target: Target, opened: int) -> BreakerView:
    return BreakerView(provider=target.provider, model=target.model, opened=opened)


def _open(target: Target, name: bytes, text: bytes, *, now: float, opened: int) -> BreakerView:
    state = stored_state(name, text, now=now)
    return BreakerView(
        provider=target.provider,
        model=target.model,
        opened=opened,
        state="probing" if state.probing_s else "open",
        open_for_s=state.open_for_s,
        next_probe_s=0.0 if state.probing_s else max(0.0, state.left_s),
        why=state.reason.message if state.reason else "",
    )
