"""What a limiter looks like from outside: read from Redis, by any process, without changing anything."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from tasks import keys

from .rate import WINDOW_S

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from .schedule import LimiterName

__all__ = ["LimiterView", "listed", "look", "mark_listed"]

_Hash = dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterView:
    """One limiter. `permitted_per_minute` and `used_last_minute` are by dimension: requests, tokens, input, output.

    `estimated_tokens` were reserved for, and `actual_tokens` taken by, the `settled` calls. `pace_share` is what 429s
    have left of the stated pace. `paused_until` is in epoch seconds. The `organisation_...` figures are of all keys of
    the model together, and empty where no limit stands above them.
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
    processes: int
    paused_until: float | None
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
    key = key_prefix + keys.LIMITERS
    async with redis.pipeline(transaction=False) as commands:
        if members:
            commands.zadd(key, members)
        commands.zremrangebyscore(key, "-inf", now - keys.LIMITER_TTL_S)
        commands.expire(key, keys.LIMITER_TTL_S)
        await commands.execute()


async def listed(redis: Redis, *, key_prefix: str = "") -> list[tuple[str, str, str]]:
    """Provider, model and key fingerprint of each limiter in use."""
    members = await cast("Awaitable[list[bytes]]", redis.zrange(key_prefix + keys.LIMITERS, 0, -1))
    return sorted(tuple(json.loads(member)) for member in members)


async def look(redis: Redis, provider: str, model: str, fingerprint: str, *, key_prefix: str = "") -> LimiterView:
    """One limiter as it stands. One round trip."""
    of = keys.limiter(provider, model, fingerprint)
    async with redis.pipeline(transaction=False) as commands:
        commands.time()
        for key in (of.clock, of.state, of.processes, of.days, of.organisation):
            commands.hgetall(key_prefix + key)
        (seconds, micros), clock_hash, *hashes = await commands.execute()
    ahead_s = _number(clock_hash, b"ahead")
    now = seconds + micros / 1e6 + ahead_s
    return _view((provider, model, fingerprint), *hashes, now=now, ahead_s=ahead_s)


def _view(
    name: tuple[str, str, str],
    state: _Hash,
    processes: _Hash,
    days: _Hash,
    organisation: _Hash,
    *,
    now: float,
    ahead_s: float,
) -> LimiterView:
    records = [record.split() for record in processes.values()]
    alive = [record for record in records if float(record[0]) >= now]
    pause = _number(state, b"pause")
    share = _pace_share(state, now)
    above = _stated(state, "o")
    return LimiterView(
        provider=name[0],
        model=name[1],
        fingerprint=name[2],
        permitted_per_minute={each: rate * share * WINDOW_S for each, rate in _paces(state, now).items()},
        used_last_minute=_used(state, now),
        requests_per_day=int(_number(state, b"requests_per_day")) or None,
        used_today=int(_number(days, str(int(now // 86_400)).encode())),
        max_in_flight=int(_number(state, b"max_in_flight")) or None,
        in_flight=sum(int(record[3]) for record in alive),
        waiting=sum(int(record[2]) for record in alive),
        processes=len(alive),
        paused_until=pause - ahead_s if pause > now else None,
        refused=int(_number(state, b"refused")),
        pace_share=share,
        settled=int(_number(state, b"settled")),
        estimated_tokens=int(_number(state, b"reserved_tokens")),
        actual_tokens=int(_number(state, b"used_tokens")),
        organisation_permitted_per_minute={each: rate * WINDOW_S for each, rate in above.items()},
        organisation_used_last_minute=_used(organisation, now) if above else {},
    )


def _paces(state: _Hash, now: float) -> dict[str, float]:
    """Permitted a second, by dimension; after a 429 also for a model whose limits nobody has stated."""
    paces = _stated(state, "s")
    if b"cap" in state and "requests" not in paces:
        paces["requests"] = _number(state, b"cap") * 1.01 ** min(1_000.0, max(0.0, now - _number(state, b"cap_at")))
    return paces


def _stated(state: _Hash, level: str) -> dict[str, float]:
    """Permitted a second, by dimension, of the key (`s`) or the organisation (`o`), as the scripts were last told."""
    parts = (part.split(":") for part in state.get(b"dimensions", b"").decode().split())
    return {name: float(rate) for its_level, name, _, rate, *_ in parts if its_level == level}


def _used(counts: _Hash, now: float) -> dict[str, float]:
    return {each: _last_minute(counts, each, now) for each in ("requests", "tokens")}


def _pace_share(state: _Hash, now: float) -> float:
    if b"factor" not in state:
        return 1.0
    return min(1.0, _number(state, b"factor") + 0.01 * max(0.0, now - _number(state, b"factor_at")))


def _last_minute(state: _Hash, name: str, now: float) -> float:
    """This minute's count, and of the last one's the share that is less than a minute ago."""
    minutes_ago = now // WINDOW_S - _number(state, b"minute")
    this, last = _number(state, name.encode()), _number(state, f"last_{name}".encode())
    if minutes_ago:
        this, last = 0.0, this if minutes_ago == 1 else 0.0
    return this + last * (1 - now % WINDOW_S / WINDOW_S)


def _number(fields: _Hash, name: bytes) -> float:
    return float(fields.get(name, 0))
