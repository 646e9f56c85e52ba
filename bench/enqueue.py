"""`enqueue`: how fast one process gets jobs into Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from celery import Celery
from rich.table import Table

from tasks import PromptQueue

from .contestants import WARM_UP_FIRST, scratch, send
from .redis_server import running_redis
from .report import Report
from .workload import bodies

__all__ = ["run"]


async def run(report: Report) -> None:
    """One by one, each awaited, and in bulk; beside them a stock Celery producer, one by one."""
    report.say("enqueue")
    plan = report.plan
    async with scratch() as directory, running_redis(directory) as redis, PromptQueue(redis.url) as queue:
        await queue.submit_many(bodies(500, first=WARM_UP_FIRST))
        app = Celery("producer", broker=redis.url)
        await asyncio.to_thread(send, app, 100, first=WARM_UP_FIRST)
        rates = {
            "Promptmill, one by one": await _rate(plan.enqueued_singly, lambda jobs: _singly(queue, jobs)),
            "Promptmill, submit_many": await _rate(plan.enqueued_in_bulk, lambda jobs: _in_bulk(queue, jobs)),
            "stock Celery, one by one": await _rate(plan.enqueued_singly, lambda jobs: _stock(app, jobs)),
        }
    table = Table(title="Enqueued by one process", title_justify="left")
    table.add_column("")
    table.add_column("jobs/s", justify="right")
    for name, jobs_per_s in rates.items():
        table.add_row(name, f"{jobs_per_s:,.0f}")
    report.show(table)
    report.figures["enqueued_per_s"] = rates


async def _rate(jobs: int, enqueue: Callable[[int], Awaitable[None]]) -> float:
    started_s = time.perf_counter()
    await enqueue(jobs)
    return jobs / (time.perf_counter() - started_s)


async def _singly(queue: PromptQueue, jobs: int) -> None:
    for request in bodies(jobs):
        await queue.submit(**request)


async def _in_bulk(queue: PromptQueue, jobs: int) -> None:
    await queue.submit_many(bodies(jobs))


async def _stock(app: Celery, jobs: int) -> None:
    await asyncio.to_thread(send, app, jobs, first=0)
