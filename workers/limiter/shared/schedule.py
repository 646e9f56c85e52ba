"""What a process and the shared schedule say to each other, and the schedule in Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from tasks.wire import redis_keys

from ...redis.link import Link
from ..cost import Cost
from ..heard.headers import LEARNED_LIMITS, LearnedLimit
from ..rate import BIN_S
from .scripts import ACQUIRE, PAUSE

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tasks.redis.script import Script

    from ..heard.headers import RateHeader
    from ..leasing.settlements import Refund
    from ..rate import Dimension, Plan

__all__ = ["LONGEST_HORIZON_S", "Ask", "Grant", "LimiterName", "Pause", "PauseReport", "RedisSchedule", "Schedule"]

LONGEST_HORIZON_S = 4.0
"""No process leases further ahead."""

_US = 1_000_000
_FIXED_FIELDS = 10


@dataclass(frozen=True, slots=True)
class LimiterName:
    """Which limit: of one key (its fingerprint, never the key), for one model of one provider."""

    provider: str
    model: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}:{self.fingerprint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One process's call. The same `seq` again changes nothing and gets the same answer.

    `costs` are the first waiters', in order; `epoch` is the latest that it knows, 0 before its first reply; `returned`
    are instants (s, the schedule's time) of slots given back; `beyond_tokens` is what one call may take beyond its
    reservation.
    """

    process: str
    seq: int
    backlog: int = 0
    held: int = 0
    costs: Sequence[Cost] = ()
    refunds: Sequence[Refund] = ()
    settled: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    went_free: int = 0
    unsent: int = 0
    headers: Sequence[RateHeader] = ()
    epoch: int = 0
    leaves: bool = False
    returned: Sequence[float] = ()
    beyond_tokens: int = 0
    longest_horizon_s: float = LONGEST_HORIZON_S
    lease_s: float = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The answer. `now`, `paused_until` (0 = no pause) and `slots` are instants of the schedule's time, in seconds.

    `reason` says why there are no more slots: `done, far, fair, calls, day` or, where `learned` is news, `limits`;
    `wait_s` is how far the next is. `learned` are the limits that answers to any process have stated.
    """

    now: float
    epoch: int = 1
    paused_until: float = 0.0
    wait_s: float = 0.0
    live: int = 1
    horizon_s: float = 0.1
    is_capped: bool = False
    processes: int = 1
    reason: str = "done"
    learned: Mapping[LearnedLimit, int] = field(default_factory=dict)
    slots: Sequence[float] = field(default=())

    @property
    def sold_ahead_s(self) -> float:
        """How far ahead of its time the schedule was sold, to whomever, where something was asked for."""
        if self.slots:
            return max(0.0, self.slots[-1] - self.now)
        return self.wait_s if self.reason in {"far", "fair"} else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseReport:
    """A 429. `epoch` is that of the refused request's slot; `asked_s` is None where the provider named no time.

    `alone_s` is how long this answer alone may pause everybody.
    """

    epoch: int
    asked_s: float | None
    alone_s: float
    went_free: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause that holds for everybody. Instants of the schedule's time, in seconds."""

    now: float
    epoch: int
    until: float


class Schedule(Protocol):
    """Where slots are sold. Raises `redis.exceptions.RedisError` or `OSError` when it can't be reached."""

    async def acquire(self, ask: Ask) -> Grant: ...
    async def pause(self, report: PauseReport) -> Pause: ...


class RedisSchedule:
    """One limiter's schedule, in Redis. `learned` are the limits by which `plan` was made, beside the catalogue's."""

    def __init__(
        self,
        redis: Redis,
        name: LimiterName,
        plan: Plan,
        *,
        learned: Mapping[LearnedLimit, int] | None = None,
        key_prefix: str = "",
        fixed_now: str = "",
        link: Link | None = None,
    ) -> None:
        """`link`: one that several schedules share.

        `fixed_now` (epoch seconds as text) stands in for Redis's clock; for tests of the scripts."""
        self.fixed_now = fixed_now
        self._link = Link(redis) if link is None else link
        self._name = name
        self._knows_requests = plan.limits_requests
        self._max_in_flight = plan.max_in_flight or 0
        self._requests_per_day = plan.requests_per_day or 0
        self._dimensions = " ".join(map(_spelt, plan.dimensions))
        self._learned = _spelt_limits(learned or {})
        self._keys = [key_prefix + key for key in redis_keys.limiter(name.provider, name.model, name.fingerprint)]
        self._channel = key_prefix + redis_keys.LIMITER_PAUSES

    async def acquire(self, ask: Ask) -> Grant:
        """Settle, report and lease, in one round trip."""
        return _grant(await self._run(ACQUIRE, self._keys, self._arguments(ask)))

    async def pause(self, report: PauseReport) -> Pause:
        """Stop everybody."""
        arguments = {
            "now": self.fixed_now,
            "channel": self._channel,
            "name": str(self._name),
            "epoch": report.epoch,
            "asked_s": -1 if report.asked_s is None else report.asked_s,
            "alone_s": report.alone_s,
            "dimensions": self._dimensions,
            "knows_requests": self._knows_requests,
            "went_free": report.went_free,
        }
        now, epoch, until = await self._run(PAUSE, self._keys[:2], arguments)
        return Pause(int(now) / _US, int(epoch), int(until) / _US)

    def _arguments(self, ask: Ask) -> dict[str, Any]:
        """As acquire.lua names them."""
        return {
            "now": self.fixed_now,
            "process": ask.process,
            "seq": ask.seq,
            "epoch": ask.epoch,
            "leaves": ask.leaves,
            "lease_s": ask.lease_s,
            "longest_s": ask.longest_horizon_s,
            "furthest_s": LONGEST_HORIZON_S,
            "backlog": ask.backlog,
            "held": ask.held,
            "dimensions": self._dimensions,
            "learned": self._learned,
            "learns": LEARNED_LIMITS,
            "max_in_flight": self._max_in_flight,
            "requests_per_day": self._requests_per_day,
            "costs": _runs(ask.costs),
            "beyond_tokens": ask.beyond_tokens,
            "refunds": [(each.bin, each.input_tokens, each.output_tokens) for each in ask.refunds],
            "bin_s": BIN_S,
            "settled": ask.settled,
            "reserved_tokens": ask.reserved_tokens,
            "used_tokens": ask.used_tokens,
            "went_free": ask.went_free,
            "unsent": ask.unsent,
            "returned_us": [round(instant * _US) for instant in sorted(ask.returned, reverse=True)],
            "headers": [header.as_map() for header in ask.headers],
        }

    async def _run(self, script: Script, names: Sequence[str], arguments: Mapping[str, Any]) -> list[bytes]:
        reply: list[bytes] = await self._link.run(script, names, [_compact(arguments)])
        return reply


_compact = json.JSONEncoder(separators=(",", ":")).encode


def _spelt(dimension: Dimension) -> str:
    level = "o" if dimension.shared_by else "s"
    pace = f"{dimension.rate_per_s:.9g}:{dimension.burst:g}:{dimension.span_s:g}"
    return f"{level}:{dimension.name}:{dimension.limit}:{pace}"


def _spelt_limits(learned: Mapping[LearnedLimit, int]) -> str:
    return ",".join(f"{name}={learned[name]}" for name in LEARNED_LIMITS if name in learned)


def _limits(spelt: str) -> dict[LearnedLimit, int]:
    limits = dict(part.split("=") for part in spelt.split(",") if part != "-")
    return {name: int(limits[name]) for name in LEARNED_LIMITS if name in limits}


def _runs(costs: Sequence[Cost]) -> list[tuple[int, int, int]]:
    """Count, input tokens and output tokens of each run of equal costs."""
    runs = ((cost, len(list(run))) for cost, run in groupby(costs))
    return [(count, cost.input_tokens, cost.output_tokens) for cost, count in runs]


def _grant(reply: Sequence[bytes]) -> Grant:
    *numbers, reason, learned = reply[:_FIXED_FIELDS]
    now, epoch, pause, wait, live, horizon, capped, processes = map(int, numbers)
    return Grant(
        now=now / _US,
        epoch=epoch,
        paused_until=pause / _US,
        wait_s=wait / _US,
        live=live,
        horizon_s=horizon / _US,
        is_capped=bool(capped),
        processes=processes,
        reason=reason.decode(),
        learned=_limits(learned.decode()),
        slots=[int(slot) / _US for slot in reply[_FIXED_FIELDS:]],
    )
