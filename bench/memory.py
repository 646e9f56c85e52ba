"""`memory`: what a job in flight weighs in its worker."""

from __future__ import annotations

import asyncio

from rich.table import Table

from tasks import PromptQueue

from .contestants import WARM_UP_FIRST, finish, scratch
from .fleet import Fleet, Shape, our_workers
from .processes import BenchError
from .provider import Provider, running_provider
from .redis_server import running_redis
from .report import Report, Verdict
from .workload import bodies

__all__ = ["run"]

LATENCY_S = 5.0
PATIENCE_S = 20.0


async def run(report: Report) -> None:
    """The worker's growth from no job to so many at once, each waiting for the provider."""
    held = report.plan.held_jobs
    report.say(f"memory: {held:,} jobs in flight in one process")
    async with (
        scratch() as directory,
        running_provider(directory, latency_ms=LATENCY_S * 1000) as provider,
        running_redis(directory) as redis,
        our_workers(Shape(1, held), redis=redis, provider=provider, directory=directory) as fleet,
        PromptQueue(redis.url) as queue,
    ):
        # So that imports and the first connections are not counted as the jobs'.
        await finish(await queue.submit_many(bodies(10, first=WARM_UP_FIRST)))
        empty_bytes = fleet.rss_bytes()
        group = await queue.submit_many(bodies(held))
        full_bytes = await _full(fleet, provider, held)
        await finish(group)
    each_kb = (full_bytes - empty_bytes) / held / 1000
    table = Table(title="Memory of one worker process", title_justify="left")
    table.add_column("")
    table.add_column("MB", justify="right")
    table.add_row("no job", f"{empty_bytes / 1e6:.0f}")
    table.add_row(f"{held:,} in flight", f"{full_bytes / 1e6:.0f}")
    report.show(table)
    report.verdicts.append(Verdict("memory of a job in flight, KB", each_kb, at_most=25))
    report.figures["memory"] = {"empty_bytes": empty_bytes, "full_bytes": full_bytes, "jobs": held}


async def _full(fleet: Fleet, provider: Provider, held: int) -> int:
    """The worker's size once the provider sees all jobs at a time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (await provider.served()).in_flight < held:  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise BenchError(f"The worker never had {held} jobs in flight.") from None
    return fleet.rss_bytes()
