"""`latency`: light load, from `submit` to the result in the caller's hands."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from rich.table import Table

from tasks import PromptQueue

from .contestants import WARM_UP_FIRST, finish, scratch
from .fleet import Shape, our_workers
from .processes import BenchError
from .provider import Provider, running_provider
from .redis_server import running_redis
from .report import Report
from .workload import bodies, body

__all__ = ["run"]

LATENCY_S = 0.005
JOBS_PER_S = 20
SHAPE = Shape(1, 100)

Ask = Callable[[dict[str, Any]], Awaitable[object]]


async def run(report: Report) -> None:
    """Ours and the bare call, job by job in turn, so that both meet the same machine."""
    report.say(f"latency: {report.plan.latency_jobs} jobs, {JOBS_PER_S} a second")
    async with (
        scratch() as directory,
        running_provider(directory, latency_ms=LATENCY_S * 1000) as provider,
        running_redis(directory) as redis,
        our_workers(SHAPE, redis=redis, provider=provider, directory=directory),
        PromptQueue(redis.url) as queue,
        aiohttp.ClientSession() as session,
    ):
        await finish(await queue.submit_many(bodies(SHAPE.places, first=WARM_UP_FIRST)))
        asks = {"Promptmill": _through(queue), "bare aiohttp call": _bare(session, provider)}
        waits_ms = await _measure(asks, report.plan.latency_jobs)
    _show(report, waits_ms)


def _through(queue: PromptQueue) -> Ask:
    async def ask(request: dict[str, Any]) -> object:
        job = await queue.submit(**request)
        return await job.result(timeout_s=10)

    return ask


def _bare(session: aiohttp.ClientSession, provider: Provider) -> Ask:
    async def ask(request: dict[str, Any]) -> object:
        async with session.post(f"{provider.url}/chat/completions", json=request) as response:
            response.raise_for_status()
            return await response.json()

    return ask


async def _measure(asks: dict[str, Ask], jobs: int) -> dict[str, list[float]]:
    waits_ms: dict[str, list[float]] = {name: [] for name in asks}
    pause_s = 1 / JOBS_PER_S / len(asks)
    async with asyncio.TaskGroup() as group:
        for number in range(jobs):
            for name, ask in asks.items():
                group.create_task(_timed(ask, body(number), waits_ms[name]))
                await asyncio.sleep(pause_s)
    if any(len(waits) != jobs for waits in waits_ms.values()):
        raise BenchError("Not every job was measured.")
    return waits_ms


async def _timed(ask: Ask, request: dict[str, Any], waits_ms: list[float]) -> None:
    started_s = time.perf_counter()
    await ask(request)
    waits_ms.append((time.perf_counter() - started_s) * 1000)


def _show(report: Report, waits_ms: dict[str, list[float]]) -> None:
    table = Table(title=f"Light load: {JOBS_PER_S} jobs a second, 5 ms each; milliseconds", title_justify="left")
    table.add_column("from submit to result")
    for name in ("p50", "p90", "p99", "max"):
        table.add_column(name, justify="right")
    figures = {name: _percentiles(waits) for name, waits in waits_ms.items()}
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.1f}" for value in values.values()))
    report.show(table)
    report.figures["latency_ms"] = figures


def _percentiles(waits: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(waits, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(waits)}
