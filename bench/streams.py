"""`streams`: answers read as they come: how old a token is at its reader, and what it costs the worker and Redis."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tasks import PromptQueue

from .contestants import WARM_UP_FIRST, scratch
from .fleet import Shape, our_workers
from .processes import BenchError, python, running, serving
from .redis_server import RedisServer, running_redis
from .report import Report, Verdict
from .streaming import now_us
from .workload import MODEL, body

__all__ = ["run"]

TOKENS_PER_S = 50
SHAPE = Shape(1, 256)
STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class StreamProvider:
    """A running `bench.streaming provider`."""

    url: str

    def catalogue(self) -> str:
        """The TOML that sends everything there."""
        return (
            f"[providers.bench]\nbase_url = {json.dumps(self.url)}\napi_keys = []\n\n"
            f'[models."{MODEL}"]\nprovider = "bench"\n'
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one round has shown, for all streams together."""

    tokens: int
    ages_ms: list[float]
    """Of each token at its reader."""
    cpu_us: float
    """The worker's, a token."""
    trips: float
    """Scripts and reads that Redis served, a token."""
    redis_cpu_us: float
    bare_cpu_us: float
    bare_ages_ms: list[float]
    """Of each token at the bare reader: what the machine itself adds."""
    reader_cpu_us: float
    """Of our client, which reads all streams in one process."""
    provider_cpu_us: float


async def run(report: Report) -> None:
    """So many streams at a time through one worker, and the same through a bare reader."""
    plan = report.plan
    report.say(f"streams: {plan.streams} at a time, {TOKENS_PER_S} tokens a second each, {plan.stream_tokens} tokens")
    async with scratch() as directory:
        command = python("bench.streaming", "provider", plan.stream_tokens, TOKENS_PER_S)
        async with serving(command, log=directory / "provider.log") as (child, url):
            provider: Any = StreamProvider(url)
            async with (
                running_redis(directory) as redis,
                our_workers(SHAPE, redis=redis, provider=provider, directory=directory) as fleet,
                PromptQueue(redis.url) as queue,
            ):
                async with asyncio.timeout(STALL_S + plan.stream_tokens / TOKENS_PER_S):
                    await asyncio.gather(*(_read(queue, WARM_UP_FIRST + number) for number in range(20)))
                gc.collect()
                gc.freeze()  # what the bench itself has imported takes the collector a tenth of a second on a busy core
                cpu_s, redis_cpu_s, trips = fleet.cpu_s(), redis.child.cpu_s(), await _trips(redis)
                reader_cpu_s, provider_cpu_s = time.process_time(), child.cpu_s()
                async with asyncio.timeout(STALL_S + plan.stream_tokens / TOKENS_PER_S):
                    ages = await asyncio.gather(*(_read(queue, number) for number in range(plan.streams)))
                cpu_s, redis_cpu_s = fleet.cpu_s() - cpu_s, redis.child.cpu_s() - redis_cpu_s
                trips, reader_cpu_s = await _trips(redis) - trips, time.process_time() - reader_cpu_s
                provider_cpu_s = child.cpu_s() - provider_cpu_s
            gc.unfreeze()
            bare = await _bare(url, plan.streams, directory)
    tokens = sum(map(len, ages))
    if tokens != plan.streams * plan.stream_tokens:
        raise BenchError(f"{tokens:,} tokens were read of {plan.streams * plan.stream_tokens:,}.")
    found = Run(
        tokens=tokens,
        ages_ms=sorted(age for each in ages for age in each),
        cpu_us=cpu_s / tokens * 1e6,
        trips=trips / tokens,
        redis_cpu_us=redis_cpu_s / tokens * 1e6,
        bare_cpu_us=bare["cpu_s"] / len(bare["ages_ms"]) * 1e6,
        bare_ages_ms=sorted(bare["ages_ms"]),
        reader_cpu_us=reader_cpu_s / tokens * 1e6,
        provider_cpu_us=provider_cpu_s / tokens * 1e6,
    )
    _show(report, found)


async def _read(queue: PromptQueue, number: int) -> list[float]:
    """One job's answer as it comes: how old each token was, in milliseconds."""
    job = await queue.submit(**body(number), stream=True)
    ages, rest = [], ""
    async for piece in job.stream():
        heard_us = now_us()
        *tokens, rest = (rest + piece).split(" ")
        ages += [(heard_us - int(token)) / 1_000 for token in tokens]
    return ages


async def _trips(redis: RedisServer) -> int:
    """Commands of workers and readers that are a round trip each; what is published costs none."""
    stats = await redis.client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "xrange", "hget"))


async def _bare(url: str, streams: int, directory: Path) -> dict[str, Any]:
    """What the bare reader prints."""
    async with running(python("bench.streaming", "bare", url, streams), log=directory / "bare.log") as child:
        figures: dict[str, Any] = json.loads(await child.output())
    return figures


def _show(report: Report, found: Run) -> None:
    ages, bare = _percentiles(found.ages_ms), _percentiles(found.bare_ages_ms)
    figures = {
        "tokens": found.tokens,
        "age_ms": ages,
        "bare_age_ms": bare,
        "cpu_us": found.cpu_us,
        "bare_cpu_us": found.bare_cpu_us,
        "redis_cpu_us": found.redis_cpu_us,
        "reader_cpu_us": found.reader_cpu_us,
        "provider_cpu_us": found.provider_cpu_us,
        "trips": found.trips,
    }
    table = Table(title=f"{found.tokens:,} tokens, read as they come", title_justify="left")
    for name in (
        "p50 ms",
        "p99 ms",
        "bare p50",
        "bare p99",
        "worker us/token",
        "bare us/token",
        "x bare",
        "client us",
        "Redis us",
        "provider us",
        "trips",
    ):
        table.add_column(name, justify="right")
    table.add_row(
        *(f"{age:.1f}" for each in (ages, bare) for age in (each["p50"], each["p99"])),
        f"{found.cpu_us:.1f}",
        f"{found.bare_cpu_us:.1f}",
        f"{found.cpu_us / found.bare_cpu_us:.2f}",
        f"{found.reader_cpu_us:.1f}",
        f"{found.redis_cpu_us:.1f}",
        f"{found.provider_cpu_us:.1f}",
        f"{found.trips:.4f}",
    )
    report.show(table)
    report.figures["streams"] = figures
    report.verdicts += [
        Verdict("age of a token at its reader, p99, ms", ages["p99"], at_most=50),
        Verdict("worker CPU per token, x bare", found.cpu_us / found.bare_cpu_us, at_most=2),
        Verdict("Redis round trips per token", found.trips, at_most=0.1),
    ]


def _percentiles(ages_ms: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(ages_ms, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "max": ages_ms[-1]}
