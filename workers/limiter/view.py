"""What a limiter looks like from outside: read from Redis, by any process, without changing anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

from tasks.wire import redis_keys

from .peek import Ahead, Hash, Sold, expected_wait_s, flow_per_s, pace_share, sold, split_tokens
from .rate import WINDOW_S

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from .cost import Cost
    from .shared.schedule import LimiterName

__all__ = ["MOST_LISTED", "LimiterHashes", "LimiterView", "listed", "look", "mark_listed", "snapshot", "view_of"]

MOST_LISTED = 1_000
"""Users may name the models, and each is labels in `promptmill metrics`."""

LOOKS_AT_ONCE = 32
"""Limiters that a snapshot reads at a time: each takes a connection."""


class LimiterHashes(NamedTuple):
    """What Redis holds of one limiter; see `tasks.wire.redis_keys.limiter`."""

    clock: Hash
    state: Hash
    processes: Hash
    days: Hash
    organisation: Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterView:
    """One limiter. `permitted_per_minute` and `used_last_minute` are by dimension: requests, tokens, input, output.

    `estimated_tokens` were reserved for, and `actual_tokens` taken by, the `settled` calls. `pace_share` is what 429s
    have left of the stated pace; `refused` counts the 429s that began a pause. `paused_until` is in epoch seconds by
    Redis's clock, `paused_for_s` needs no clock. `asked_wait_s` is how much longer the provider asks us to wait, where
    that is more than a pause: at first one answer alone is not believed, and the pause is shorter.

    `wait_s` is about how long a request of the usual size would wait that came now and stood behind all others; in a
    worker with a short queue of its own it goes sooner. None: nobody can tell.

    The `organisation_...` figures are of all keys of the model together, and empty where no limit stands above them.
    """

    provider: str
    model: str
    fingerprint: str
    permitted_per_minute: Mapping[str, float]
    used_last_minute: Mapping[str, float]
    requests_per_day: int | None
    used_today: int
    max_in_flight: int | None
    in_flight: int
    waiting: int
    wait_s: float | None
    processes: int
    paused_until: float | None
    paused_for_s: float
    asked_wait_s: float
    refused: int
    pace_share: float
    settled: int
    estimated_tokens: int
    actual_tokens: int
    organisation_permitted_per_minute: Mapping[str, float] = field(default_factory=dict)
    organisation_used_last_minute: Mapping[str, float] = field(default_factory=dict)


async def mark_listed(redis: Redis, names: list[LimiterName], *, now: float, key_prefix: str = "") -> None:
    """These limiters are in use, at the epoch second `now`."""
    members = {json.dumps([name.provider, name.model, name.fingerprint]): now for name in names}
    key = key_prefix + redis_keys.LIMITERS
    async with redis.pipeline(transaction=False) as commands:
        if members:
            commands.zadd(key, members)
        commands.zremrangebyscore(key, "-inf", now - redis_keys.LIMITER_TTL_S)
        commands.expire(key, redis_keys.LIMITER_TTL_S)
        await commands.execute()


async def listed(redis: Redis, *, key_prefix: str = "") -> list[tuple[str, str, str]]:
    """Provider, model and key fingerprint of each limiter in use, of the latest `MOST_LISTED`."""
    latest = redis.zrange(key_prefix + redis_keys.LIMITERS, 0, MOST_LISTED - 1, desc=True)
    members = await cast("Awaitable[list[bytes]]", latest)
    return sorted(tuple(json.loads(member)) for member in members)


async def look(redis: Redis, provider: str, model: str, fingerprint: str, *, key_prefix: str = "") -> LimiterView:
    """One limiter as it stands. One round trip."""
    of = redis_keys.limiter(provider, model, fingerprint)
    async with redis.pipeline(transaction=False) as commands:
        commands.time()
        for key in (of.clock, of.state, of.processes, of.days, of.organisation):
            commands.hgetall(key_prefix + key)
        (seconds, micros), *hashes = await commands.execute()
    return view_of((provider, model, fingerprint), LimiterHashes(*hashes), redis_now=seconds + micros / 1e6)


def view_of(name: tuple[str, str, str], hashes: LimiterHashes, *, redis_now: float) -> LimiterView:
    """The limiter at `redis_now`, epoch seconds by Redis's clock."""
    # As clock.lua has the time: where Redis's clock was set back, the schedule's stands until it is set again.
    now = max(redis_now + _number(hashes.clock, b"ahead"), _number(hashes.clock, b"seen"))
    state, pause = hashes.state, _number(hashes.state, b"pause")
    lost_until = _number(state, b"lost_until")  # from when on the schedule that took the place of a lost one sells
    alive = [record for record in map(bytes.split, hashes.processes.values()) if float(record[0]) >= now]
    dimensions = sold(state, hashes.organisation, now=now)
    ahead, usual = _ahead(hashes, alive, dimensions, now=now), _usual(state, b"reserved_tokens", dimensions)
    return LimiterView(
        provider=name[0],
        model=name[1],
        fingerprint=name[2],
        permitted_per_minute=_permitted(dimensions, shared=False),
        used_last_minute=_used(state, now),
        requests_per_day=ahead.requests_per_day,
        used_today=ahead.used_today,
        max_in_flight=ahead.max_in_flight,
        in_flight=ahead.in_flight,
        waiting=ahead.waiting,
        wait_s=expected_wait_s(dimensions, usual, ahead=ahead, now=now, nothing_until=max(pause, lost_until)),
        processes=len(alive),
        paused_until=redis_now + pause - now if pause > now else None,
        paused_for_s=max(0.0, pause - now),
        asked_wait_s=max(0.0, _number(state, b"long_until") - now),
        refused=int(_number(state, b"refused")),
        pace_share=pace_share(state, now=now),
        settled=int(_number(state, b"settled")),
        estimated_tokens=int(_number(state, b"reserved_tokens")),
        actual_tokens=int(_number(state, b"used_tokens")),
        organisation_permitted_per_minute=(above := _permitted(dimensions, shared=True)),
        organisation_used_last_minute=_used(hashes.organisation, now) if above else {},
    )


def _permitted(dimensions: Sequence[Sold], *, shared: bool) -> dict[str, float]:
    return {each.name: each.rate_per_s * WINDOW_S for each in dimensions if each.is_shared is shared}


def _used(counts: Hash, now: float) -> dict[str, float]:
    return {each: _last_minute(counts, each, now) for each in ("requests", "tokens")}


def _ahead(hashes: LimiterHashes, alive: Sequence[Sequence[bytes]], dimensions: Sequence[Sold], *, now: float) -> Ahead:
    state = hashes.state
    return Ahead(
        waiting=sum(int(record[2]) for record in alive),
        # What they don't use comes back to the schedule, so those before us cost what they take in the end.
        typical=_usual(state, b"used_tokens", dimensions),
        in_flight=sum(int(record[3]) for record in alive),
        max_in_flight=int(_number(state, b"max_in_flight")) or None,
        used_today=int(_number(hashes.days, str(int(now // 86_400)).encode())),
        requests_per_day=int(_number(state, b"requests_per_day")) or None,
        flow_per_s=flow_per_s(state, now=now),
    )


def _usual(state: Hash, tokens: bytes, dimensions: Sequence[Sold]) -> Cost:
    """The mean of all calls so far."""
    return split_tokens(_number(state, tokens) / max(1.0, _number(state, b"settled")), dimensions)


def _last_minute(state: Hash, name: str, now: float) -> float:
    """This minute's count, and of the last one's the share that is less than a minute ago."""
    minutes_ago = now // WINDOW_S - _number(state, b"minute")
    this, last = _number(state, name.encode()), _number(state, f"last_{name}".encode())
    if minutes_ago:
        this, last = 0.0, this if minutes_ago == 1 else 0.0
    return this + last * (1 - now % WINDOW_S / WINDOW_S)


def _number(fields: Hash, name: bytes) -> float:
    return float(fields.get(name, 0))


async def snapshot(redis: Redis, *, key_prefix: str = "") -> list[LimiterView]:
    """Every limiter that any worker uses, as it stands. Changes nothing."""
    names, views = await listed(redis, key_prefix=key_prefix), []
    for first in range(0, len(names), LOOKS_AT_ONCE):
        some = names[first : first + LOOKS_AT_ONCE]
        views += await asyncio.gather(*(look(redis, *name, key_prefix=key_prefix) for name in some))
    return views
