"""The same jobs through ours, a bare loop and stock Celery: one sample each."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from celery import Celery
from redis.asyncio import Redis

from tasks import PromptQueue, PromptResult
from tasks.jobs import Group

from .fleet import Fleet, Shape, our_workers, running_fleet
from .processes import HERE, BenchError, clean_environ, python, running
from .provider import Provider
from .redis_server import RedisServer, running_redis
from .samples import Sample, check_served
from .workload import bodies, body

__all__ = ["WARM_UP_FIRST", "bare", "finish", "ours", "scratch", "send", "stock"]

WARM_UP_FIRST = 10_000_000
"""Numbers of the prompts that warm up, so that none of them comes again."""

RESULT_PREFIX = "celery-task-meta-"
LOOK_S = 0.05
STALL_S = 30.0


class Ready(NamedTuple):
    """What a measured run needs, warmed up."""

    fleet: Fleet
    redis: RedisServer
    provider: Provider


@asynccontextmanager
async def scratch() -> AsyncIterator[Path]:
    """A private directory for logs and the like, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as name:
        yield Path(name)


async def ours(
    shape: Shape,
    jobs: int,
    *,
    provider: Provider,
    latency_s: float,
    tree: Path = HERE,
    different: int | None = None,
    cache_ttl_s: float | None = None,
) -> Sample:
    """Through our client and our workers, those of the checkout in `tree`.

    With `cache_ttl_s` every job asks for the cache. Of the jobs, `different` differ (None: all): each prompt comes once
    before one comes again, as it would in a file.
    """
    calls = jobs if different is None else different
    async with (
        scratch() as directory,
        running_redis(directory) as redis,
        our_workers(shape, redis=redis, provider=provider, directory=directory, tree=tree) as fleet,
        PromptQueue(redis.url) as queue,
    ):
        warm_up = await queue.submit_many(bodies(max(500, shape.places), first=WARM_UP_FIRST))
        await finish(warm_up)

        async def fill() -> Callable[[], Awaitable[None]]:
            requests = (body(number % calls) for number in range(jobs))
            options = {} if cache_ttl_s is None else {"cache_ttl_s": cache_ttl_s}
            group = await queue.submit_many({**request, **options} for request in requests)
            return lambda: finish(group)

        return await _measured(Ready(fleet, redis, provider), shape, jobs, latency_s, fill, calls=calls)


async def finish(group: Group) -> None:
    """Read a group's results as they come. Raises `BenchError` for one that is not an answer."""
    try:
        async with asyncio.timeout(STALL_S) as stall:
            async for batch in group.completed_batches():
                stall.reschedule(asyncio.get_running_loop().time() + STALL_S)
                _check(batch)
    except TimeoutError:
        raise BenchError(f"No job has ended for {STALL_S:g} s.") from None


def _check(batch: list[PromptResult]) -> None:
    failed = [result for result in batch if not result.ok]
    if failed:
        raise BenchError(f"A job ended without an answer: {failed[0].error}")


async def stock(shape: Shape, jobs: int, *, provider: Provider, latency_s: float) -> Sample:
    """Through Celery as it comes: its own transport and backend, the threads pool and one loop for all threads."""
    async with scratch() as directory, running_redis(directory) as redis:
        environ = clean_environ(BENCH_REDIS_URL=redis.url, BENCH_PROVIDER_URL=provider.url)
        async with running_fleet(
            "bench.stock_app", shape, redis=redis, directory=directory, environ=environ, options=("-P", "threads")
        ) as fleet:
            app = Celery("producer", broker=redis.url, backend=redis.url)
            await _until_stored(redis.client, send(app, max(200, shape.places), first=WARM_UP_FIRST))

            async def fill() -> Callable[[], Awaitable[None]]:
                ids = await asyncio.to_thread(send, app, jobs, first=0)
                return lambda: _until_stored(redis.client, ids)

            return await _measured(Ready(fleet, redis, provider), shape, jobs, latency_s, fill)


def send(app: Celery, jobs: int, *, first: int) -> list[str]:
    with app.producer_pool.acquire() as producer:
        return [
            app.send_task("stock.chat", kwargs=request, producer=producer).id for request in bodies(jobs, first=first)
        ]


async def _until_stored(client: Redis, ids: list[str]) -> None:
    missing, stalls_at = ids, time.monotonic() + STALL_S
    while missing:
        await asyncio.sleep(LOOK_S)
        records = await client.mget([RESULT_PREFIX + job_id for job_id in missing])
        if any(record and json.loads(record)["status"] != "SUCCESS" for record in records):
            raise BenchError("A stock Celery job failed.")
        left = [job_id for job_id, record in zip(missing, records, strict=True) if not record]
        stalls_at = stalls_at if len(left) == len(missing) else time.monotonic() + STALL_S
        if time.monotonic() > stalls_at:
            raise BenchError(f"Stock Celery stands still with {len(left)} jobs left.")
        missing = left


async def _measured(
    ready: Ready,
    shape: Shape,
    jobs: int,
    latency_s: float,
    fill: Callable[[], Awaitable[Callable[[], Awaitable[None]]]],
    *,
    calls: int | None = None,
) -> Sample:
    """Fill the queue before frozen workers, let them go, and measure until every result has been read."""
    fleet, redis, provider = ready
    await provider.reset()
    with fleet.frozen():
        read_results = await fill()
        cpu_s, redis_cpu_s, trips = fleet.cpu_s(), redis.child.cpu_s(), await redis.round_trips()
    started_s = time.perf_counter()
    await read_results()
    wall_s = time.perf_counter() - started_s
    served = check_served(await provider.served(), jobs if calls is None else calls)
    return Sample(
        jobs=jobs,
        calls=served.calls,
        places=shape.places,
        latency_s=latency_s,
        wall_s=wall_s,
        cpu_s=fleet.cpu_s() - cpu_s,
        rss_bytes=fleet.rss_bytes(),
        peak_in_flight=served.peak_in_flight,
        round_trips=await redis.round_trips() - trips,
        redis_cpu_s=redis.child.cpu_s() - redis_cpu_s,
    )


async def bare(
    shape: Shape, jobs: int, *, provider: Provider, latency_s: float, session_per_call: bool = False
) -> Sample:
    """Without any queue: each process calls the provider for its share of the jobs."""
    flags = ["--session-per-call"] if session_per_call else []
    command = python("bench.bare", provider.url, jobs // shape.processes, shape.concurrency, *flags)
    async with scratch() as directory:
        outputs = await asyncio.gather(
            *(_output(command, directory / f"bare-{number}.log") for number in range(shape.processes))
        )
    figures: list[dict[str, float]] = [json.loads(output) for output in outputs]
    served = await provider.served()
    return Sample(
        jobs=jobs,
        places=shape.places,
        latency_s=latency_s,
        wall_s=max(row["wall_s"] for row in figures),
        cpu_s=sum(row["cpu_s"] for row in figures),
        rss_bytes=int(sum(row["rss_bytes"] for row in figures)),
        peak_in_flight=served.peak_in_flight,
    )


async def _output(command: list[str], log: Path) -> str:
    async with running(command, log=log) as child:
        return await child.output()
