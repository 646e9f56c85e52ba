"""Workers of one Redis in one process: each has a broker's leases, answers and a pipeline of its own, and no Celery."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import redis
from redis.asyncio import Redis

from tasks.results import PromptResult
from tasks.wire import redis_keys
from tests.workers.broker.broker import STEPS, Broker, list_name, message
from workers.answers import Answers
from workers.pipeline.pipeline import Pipeline
from workers.prompt.parked import Parked

__all__ = ["BODY", "PRIORITIES", "Fleet", "Worker", "answers_of", "ends", "fleet_of", "submit"]

QUEUE = redis_keys.QUEUE
PRIORITIES = {"interactive": 0, "normal": 3, "bulk": 9}
BODY = {"model": "m", "messages": [{"role": "user", "content": "How many?"}]}


def answers_of(client: Redis, *, memory_bytes: int = 10**7, redis_bytes: int = 10**7) -> Answers:
    return Answers(
        client, memory_bytes=memory_bytes, redis_bytes=redis_bytes, to_redis=lambda instant: instant, redis_s=time.time
    )


class Worker:
    """Takes jobs and runs them. `kill` as kill -9, a lease's time ago: nothing more is said of what it runs."""

    def __init__(self, client: redis.Redis, answers: Answers, pipeline: Pipeline, *, places: int) -> None:
        self.broker = Broker(client)
        self.answers = answers
        self.pipeline = pipeline
        self.results: dict[str, PromptResult] = {}
        self.parked: list[str] = []
        self._places = places
        self._running: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._work())
        self._is_dead = False

    async def _work(self) -> None:
        beat_at = 0.0
        while True:
            for tag, raw in self.broker.take(QUEUE, room=self._places - len(self._running)):
                task = asyncio.create_task(self._run(tag, json.loads(raw)))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + 0.1
                self.broker.heartbeat(list(self.broker.leases.held))
            await asyncio.sleep(0.005)

    async def _run(self, tag: str, known: dict[str, Any]) -> None:
        headers = known["headers"]
        memory = known.get("promptmill_parked")
        try:
            result = await self.pipeline.handle(
                headers["kind"],
                headers["id"],
                [],
                headers["job"],
                queue=QUEUE,
                parked=memory and _decoded(memory),
                redelivered="promptmill" in known,  # the history that the broker's scripts append
            )
        except Parked as again:
            if not self._is_dead:
                self.parked.append(headers["id"])
                self.park(tag, again)
            return
        if not self._is_dead:
            self.results[headers["id"]] = result
            self.broker.leases.ack(tag)

    def park(self, tag: str, again: Parked) -> None:
        self.broker.leases.delay(tag, int(again.until_s * 1000), memory=again.memory, follows=again.follows)
        self.broker.say_news()

    def kill(self) -> None:
        self._is_dead = True
        # Nobody says anything for it any more: neither that its calls are under way, nor that they have ended.
        self.answers._courier.land = lambda *_: None  # type: ignore[method-assign]
        assert self.answers._beating is not None
        self.answers._beating.cancel()
        self.stop()
        self.broker.client.zadd(redis_keys.LEASES, dict.fromkeys(self.broker.leases.held, 0))

    def stop(self) -> None:
        for task in (self._task, *self._running):
            task.cancel()


def _decoded(memory: str) -> str:
    import base64

    return base64.b64decode(memory).decode()


class Fleet:
    def __init__(self, client: redis.Redis, workers: Sequence[Worker]) -> None:
        self.client = client
        self.workers = workers

    def submit(self, job_id: str, body: dict[str, Any], *, kind: str = "chat", **options: Any) -> None:
        options = {"cache_ttl_s": 60, "submitted_at": time.time(), **options}
        step = PRIORITIES[options.get("priority", "normal")]
        raw = message(job_id, priority=step, queue=QUEUE, kind=kind, job={**body, "promptmill": options})
        self.client.lpush(list_name(QUEUE, step), raw)

    @property
    def results(self) -> dict[str, PromptResult]:
        return {job_id: result for worker in self.workers for job_id, result in worker.results.items()}

    @property
    def parked(self) -> list[str]:
        return [job_id for worker in self.workers for job_id in worker.parked]


@asynccontextmanager
async def fleet_of(
    client: redis.Redis, url: str, pipeline_to: Any, provider_url: str, *, size: int, places: int = 50, **options: Any
) -> AsyncIterator[Fleet]:
    assert STEPS == redis_keys.PRIORITY_STEPS
    memory = {name: options.pop(name) for name in ("memory_bytes", "redis_bytes") if name in options}
    async with AsyncExitStack() as stack:
        workers = []
        for _ in range(size):
            link = await stack.enter_async_context(Redis.from_url(url))
            answers = await stack.enter_async_context(answers_of(link, **memory))
            pipeline = await stack.enter_async_context(
                pipeline_to(provider_url, answers=answers, real_time=True, **options)
            )
            workers.append(Worker(client, answers, pipeline, places=places))
        try:
            yield Fleet(client, workers)
        finally:
            for worker in workers:
                worker.stop()


def submit(fleet: Fleet, count: int, **options: Any) -> None:
    """So many equal prompts."""
    for number in range(count):
        fleet.submit(f"job-{number}", BODY, **options)


def ends(fleet: Fleet) -> Counter[tuple[str, bool]]:
    """How jobs have ended, and whether their answers came from the cache."""
    return Counter((each.status, each.cached) for each in fleet.results.values())
