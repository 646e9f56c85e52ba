"""All stored answers from outside: how many there are, what the look-ups found, and how they are deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from tasks.wire import redis_keys

from . import scripts
from .digest import tenant_digest
from .tally import MICRO, TIERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

__all__ = ["Stock", "StockView"]

AT_ONCE: Final = 1_000
_SERVED: Final = ("memory", "redis", "shared")
_LOOKED: Final = (*_SERVED, "missed", "skipped")


@dataclass(frozen=True, slots=True)
class StockView:
    """The answers that are stored. `found` is how often look-ups of all tenants found an answer, and where."""

    answers: int
    bytes: int
    found: Mapping[str, int]
    saved_usd: float

    @property
    def hit_rate(self) -> float | None:
        """The share of jobs with a cache time that needed no call; None: there were no such jobs."""
        looked = sum(self.found[tier] for tier in _LOOKED)
        return sum(self.found[tier] for tier in _SERVED) / looked if looked else None


class Stock:
    """The stored answers of a deployment. Blocking."""

    def __init__(self, redis: Redis, *, key_prefix: str = "") -> None:
        self._redis: Any = redis
        self._indexes = [key_prefix + key for key in redis_keys.ANSWER_INDEXES]
        self._counts = key_prefix + redis_keys.COUNTS
        self._answers = key_prefix + redis_keys.ANSWER_PREFIX
        self._clear = redis.register_script(scripts.CLEAR.text)

    def view(self, *, tenant: str | None = None) -> StockView:
        """Of one tenant, or of all. Raises `redis.exceptions.RedisError`."""
        seconds, microseconds = self._redis.time()
        counted = self._redis.hgetall(self._counts)
        living = self._living(_begins_with(tenant), now_ms=seconds * 1000 + microseconds // 1000)
        return StockView(
            len(living),
            sum(living),
            {tier: int(counted.get(b"cache_lookups_total:" + tier.encode(), 0)) for tier in TIERS},
            int(counted.get(b"cache_saved_usd_total:answers", 0)) / MICRO,
        )

    def clear(self, *, tenant: str | None = None) -> int:
        """Delete them. How many there were."""
        deleted = position = 0
        while position >= 0:
            ask = {"answers": self._answers, "tenant": _begins_with(tenant), "position": position, "most": AT_ONCE}
            some, position = self._clear(keys=self._indexes, args=[orjson.dumps(ask)])
            deleted += some
        return deleted

    def _living(self, beginning: str, *, now_ms: int) -> list[int]:
        """The bytes of each answer that has not ended."""
        sizes, cursor = {}, 0
        while True:
            cursor, found = self._redis.zscan(self._indexes[1], cursor, match=f"{beginning}*", count=AT_ONCE)
            sizes.update({member: int(member.split()[1]) for member, ends_ms in found if ends_ms > now_ms})
            if not cursor:
                return list(sizes.values())


def _begins_with(tenant: str | None) -> str:
    return "" if tenant is None else f"{tenant_digest(tenant)}:"
