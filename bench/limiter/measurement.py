"""One scenario from an empty Redis to what the provider and the processes have counted."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ..contestants import scratch
from ..processes import BenchError, Child, python, running
from ..redis_server import running_redis
from .process import READY
from .provider import Call, StrictProvider, listening
from .scenarios import Scenario

__all__ = ["Record", "measure"]

STOP_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Instants are seconds of the provider's monotonic clock."""

    scenario: Scenario
    calls: Sequence[Call]
    started_at: float
    ended_at: float
    struck_at: float | None
    """When the process was killed, or the call refused."""
    round_trips: int
    """As Redis has counted them, of all processes."""
    grants: int
    stale: int
    cpu_s: float
    provider_latest_s: float


async def measure(scenario: Scenario) -> Record:
    """Start the processes, let them run, strike, and ask each what it has counted."""
    provider = StrictProvider(scenario)
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(scratch())
        redis = await stack.enter_async_context(running_redis(directory))
        port = await stack.enter_async_context(listening(provider))
        children = [
            await stack.enter_async_context(_process(scenario, index, redis.url, port, directory))
            for index in range(scenario.processes)
        ]
        for child in children:
            if await child.first_line() != READY:
                raise child.failure("did not start")
        round_trips = await redis.round_trips()
        started_at = time.monotonic()
        killed_at = await _let_run(scenario, provider, children)
        ended_at = time.monotonic()
        round_trips = await redis.round_trips() - round_trips
        counts = await _stopped(children)
    return Record(
        scenario=scenario,
        calls=provider.calls,
        started_at=started_at,
        ended_at=ended_at,
        struck_at=killed_at or provider.refused_at,
        round_trips=round_trips,
        grants=sum(started_at <= call.at < ended_at for call in provider.calls),
        stale=int(counts["stale"]),
        cpu_s=counts["cpu_s"],
        provider_latest_s=provider.latest_s,
    )


def _process(
    scenario: Scenario, index: int, redis_url: str, port: int, directory: Path
) -> AbstractAsyncContextManager[Child]:
    part = {"scenario": asdict(scenario), "index": index, "redis_url": redis_url, "port": port}
    return running(python("bench.limiter", json.dumps(part)), log=directory / f"process-{index}.log")


async def _let_run(scenario: Scenario, provider: StrictProvider, children: Sequence[Child]) -> float | None:
    """When a process was killed, if one was."""
    killed_at = None
    ends_at = time.monotonic() + scenario.time_s
    await asyncio.sleep(scenario.strike_after_s)
    match scenario.strike:
        case "kill":
            children[0].signal(signal.SIGKILL)
            killed_at = time.monotonic()
        case "refuse":
            provider.refuse_next()
    await asyncio.sleep(ends_at - time.monotonic())
    return killed_at


async def _stopped(children: Sequence[Child]) -> dict[str, float]:
    """What all together have counted."""
    for child in children:
        if not child.has_ended:
            child.signal(signal.SIGTERM)
    counts = [await _counts(child) for child in children]
    return {name: sum(each.get(name, 0) for each in counts) for name in ("stale", "cpu_s")}


async def _counts(child: Child) -> dict[str, float]:
    """Nothing from one that was killed or can't be stopped in time: waiters of other limiters swallow cancellation."""
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            counts: dict[str, float] = json.loads(await child.output())
    except TimeoutError:
        child.signal(signal.SIGKILL)
        return {}
    except BenchError:
        if child.was_killed:
            return {}
        raise
    return counts
