"""What is said to the breakers in Redis, and what they answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tasks.redis.script import Script
from tasks.wire import redis_keys

from ..redis.link import Link
from .health import Target
from .outage import LONGEST_OPEN_S, PROBE_S, Reason
from .window import LEAST_SPAN_S, BreakerPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

__all__ = ["SharedBreakers", "State", "read_state"]

_LUA: Final = Path(__file__).with_name("lua")
REPORT: Final = Script.read(_LUA, "report")
CLAIM: Final = Script.read(_LUA, "claim")
SETTLE: Final = Script.read(_LUA, "settle")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One breaker, as Redis has it. `epoch` rises with each change. Durations are seconds, from when it was read."""

    target: Target
    epoch: int
    is_open: bool = False
    open_for_s: float = 0.0
    """How long it has been open."""
    left_s: float = 0.0
    """Until the next probe; not positive: it is due."""
    pause_s: float = 0.0
    probing_s: float = 0.0
    """How long others are to wait for the probe under way; 0: there is none."""
    is_ours: bool = False
    """Whether the asking process holds the probe."""
    reason: Reason | None = None


class SharedBreakers:
    """The scripts' caller. Raises what the client raises, and `TimeoutError`."""

    def __init__(
        self, redis: Redis, policy: BreakerPolicy, *, process: str, key_prefix: str = "", fixed_now: str = ""
    ) -> None:
        """`process` is unique to the process's run. `fixed_now` (ms as text) stands in for Redis's clock in tests."""
        self.fixed_now = fixed_now
        self._redis = redis
        self._link = Link(redis)
        self._policy = policy
        self._process = process
        self._key_prefix = key_prefix

    async def close(self) -> None:
        await self._link.close()

    async def report(
        self,
        target: Target,
        *,
        failing: Sequence[tuple[str, bool]],
        answered: Sequence[tuple[int, int]],
        reason: Reason | None,
    ) -> State | Literal["watch"] | None:
        """Add calls to the window of all workers. The breaker, if that opens it or it is open; None: it is closed.

        "watch": these are the first failures of late. The others are asked for their answers; report the same again.
        """
        policy = self._policy
        reply = await self._call(
            REPORT,
            target,
            failing=failing,
            answered=answered,
            failures=policy.failures,
            window_s=policy.window_s,
            least_span_s=LEAST_SPAN_S,
            open_s=policy.open_s,
            **_spelt(reason),
        )
        return "watch" if reply == b"watch" else _state(reply)

    async def claim(self, target: Target) -> State | None:
        """Ask for the probe. None: the breaker is closed."""
        return _state(await self._call(CLAIM, target, probe_s=PROBE_S))

    async def settle(self, target: Target, outcome: str, reason: Reason | None = None) -> State | None:
        """What the probe has found: `works`, `fails`, or nothing (`released`)."""
        return _state(await self._call(SETTLE, target, outcome=outcome, longest_s=LONGEST_OPEN_S, **_spelt(reason)))

    async def read(self) -> tuple[float, dict[Target, State]]:
        """Redis's time (s) and all breakers that are open. One round trip."""
        now, fields = await hashes_of(self._redis, self._key_prefix + redis_keys.BREAKERS)
        states = [stored_state(name, text, now=now) for name, text in fields.items()]
        return now, {state.target: state for state in states}

    async def _call(self, script: Script, target: Target, **arguments: Any) -> bytes:
        keys = [self._key_prefix + key for key in redis_keys.breaker(target.provider, target.model)]
        said = {
            "now": self.fixed_now,
            "process": self._process,
            "name": json.dumps(target),
            "channel": self._key_prefix + redis_keys.BREAKER_CHANNEL,
            **arguments,
        }
        reply: Any = await self._link.run(script, keys, [json.dumps(said, separators=(",", ":"))])
        return bytes(reply)


async def hashes_of(redis: Redis, *keys: str) -> Any:
    """Redis's time (s), and the hashes of these keys as they were then. One round trip."""
    async with redis.pipeline(transaction=False) as commands:
        commands.time()
        for key in keys:
            commands.hgetall(key)
        (seconds, micros), *hashes = await commands.execute()
    return seconds + micros / 1e6, *hashes


def _state(reply: bytes) -> State | None:
    return read_state(reply) if reply else None


def _spelt(reason: Reason | None) -> dict[str, Any]:
    if reason is None:
        return {}
    return {"code": reason.code, "message": reason.message, "status": reason.http_status or 0}


def read_state(text: str | bytes) -> State:
    """A state as scripts give and publish it. Raises ValueError for anything else."""
    told = json.loads(text)
    if not isinstance(told, dict) or "name" not in told:
        raise ValueError("not a breaker's state")
    target, epoch = Target(*json.loads(told["name"])), int(told["epoch"])
    if not told["open"]:
        return State(target=target, epoch=epoch)
    return State(
        target=target,
        epoch=epoch,
        is_open=True,
        open_for_s=told["open_for_ms"] / 1000,
        left_s=told["left_ms"] / 1000,
        pause_s=told["pause_ms"] / 1000,
        probing_s=told["probing_ms"] / 1000,
        is_ours=told["ours"],
        reason=_reason(told),
    )


def stored_state(name: bytes, text: bytes, *, now: float) -> State:
    """A state as it stands in the hash `redis_keys.BREAKERS`; `now` by Redis's clock."""
    stored = json.loads(text)
    return State(
        target=Target(*json.loads(name)),
        epoch=int(stored["epoch"]),
        is_open=True,
        open_for_s=now - stored["since"] / 1000,
        left_s=stored["until"] / 1000 - now,
        pause_s=stored["pause"] / 1000,
        probing_s=max(0.0, stored.get("probing_until", 0) / 1000 - now),
        reason=_reason(stored),
    )


def _reason(said: Mapping[str, Any]) -> Reason:
    return Reason(said["code"], said["message"], said["status"] or None)
