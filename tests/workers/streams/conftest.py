"""A worker's pipeline and a client's queue over one Redis, in one loop: a job is run by a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import groupby
from typing import Any

import pytest
import redis
import redis.asyncio

from tasks import Job, PromptQueue, StreamEvent
from tasks.redis.cancellation import stop
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from tests.tasks.harness import celery_record
from workers.pipeline.pipeline import Pipeline
from workers.prompt.job import PromptJob
from workers.redis.channel import Channel
from workers.streams import Streams
from workers.streams.asked import Asked

__all__ = ["Mill", "Sending", "Streamer", "first_told", "kinds_of"]


class Mill:
    """Workers, without Celery: each `worker()` is a process's pipeline, and `run` does a job in it."""

    def __init__(self, url: str, pipeline_to: Any, stack: AsyncExitStack) -> None:
        self.url = url
        self._look: Any = stack.enter_context(redis.Redis.from_url(url))
        self.queue = PromptQueue(url)
        self.redis = redis.asyncio.Redis.from_url(url)
        self._pipeline_to = pipeline_to
        self._stack = stack
        self.asked: dict[Pipeline, dict[str, None]] = {}
        """Of each worker, the jobs whose readers it has heard of."""
        self._running: set[asyncio.Task[None]] = set()

    async def worker(self, url: str, *, stream: dict[str, Any] | None = None, **options: Any) -> Pipeline:
        """One that calls this provider. `stream` are `Streams`' options."""
        streams = Streams(self.redis, **(stream or {}))
        streams.asked = Asked()
        channel = Channel(self.redis)
        heard = asyncio.Event()
        channel.listen(redis_keys.STREAMS_CHANNEL, streams.asked.hear_one, hears_again=heard.set)
        channel.open()
        self._stack.push_async_callback(channel.close)
        self._stack.push_async_callback(streams.close)
        maker = self._pipeline_to(url, streams=streams, real_time=True, **options)
        pipeline: Pipeline = await self._stack.enter_async_context(maker)
        self.asked[pipeline] = streams.asked.jobs
        await asyncio.wait_for(heard.wait(), 10)
        return pipeline

    async def submitted(self, job: PromptJob) -> Job:
        """The client's handle on a job that no worker has yet."""
        await self.redis.hset(redis_keys.job(job.id), "state", "queued")
        return self.queue.job(job.id)

    def entries(self, job: PromptJob) -> int:
        """How many the job's stream has."""
        return int(self._look.xlen(redis_keys.stream(job.id)))

    def text(self, job: PromptJob) -> str:
        """What its entries bring, of the last run. One may begin before the end of another, which was said again."""
        text = ""
        for entry_id, fields in self._look.xrange(redis_keys.stream(job.id)):
            piece, ends = fields.get(b"t", b"").decode(), int(entry_id.partition(b"-")[2])
            text = text[: ends - len(piece)] + piece
        return text

    def start(self, pipeline: Pipeline, job: PromptJob) -> asyncio.Task[None]:
        """Run it, and store its result."""
        task = asyncio.create_task(self._run(pipeline, job))
        self._running.add(task)
        return task

    async def _run(self, pipeline: Pipeline, job: PromptJob) -> None:
        result = await pipeline.run(job)
        record = celery_record(job.id, result)
        await self.redis.set(redis_keys.result(job.id), record)
        await self.redis.publish(redis_keys.result(job.id), record)

    async def close(self) -> None:
        await stop(*self._running)
        await self.queue.aclose()


@pytest.fixture
async def mill(server: RedisServer, client: Any, pipeline_to: Any) -> AsyncIterator[Mill]:
    async with AsyncExitStack() as stack:
        mill = Mill(server.url, pipeline_to, stack)
        stack.push_async_callback(mill.redis.aclose)
        yield mill
        await mill.close()


async def first_told(found: Any) -> asyncio.Task[list[Any]]:
    """Reads on, in a task that gives all that came; from now on a text has come."""
    told: list[Any] = []

    async def read() -> list[Any]:
        async for each in found:
            told.append(each)  # noqa: PERF401 - what has come is looked at meanwhile
        return told

    task = asyncio.create_task(read())
    await wait_until_async(lambda: any(isinstance(each, str) or each.text for each in told), "a text has come")
    return task


def kinds_of(events: list[StreamEvent]) -> list[str]:
    """In order, a text's once: in how many pieces it comes is a matter of time."""
    return [kind for kind, _ in groupby(event.kind for event in events)]


@pytest.fixture
def reading() -> Callable[[Any], Awaitable[list[Any]]]:
    async def read(found: Any) -> list[Any]:
        return [each async for each in found]

    return read


class Streamer:
    """A provider whose pieces the test sends. `asked` has the body of each request."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()
        self.calls: asyncio.Queue[Sending] = asyncio.Queue()

    async def serve(self) -> asyncio.Server:
        listener = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        return listener

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self.asked.append(json.loads(await reader.readexactly(length)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            self.calls.put_nowait(Sending(writer))
            await reader.read()  # until the worker hangs up
            self.hung_up.set()
        except ConnectionError:
            self.hung_up.set()
        finally:
            writer.close()


class Sending:
    """One call, whose answer the test sends."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def text(self, *pieces: str, finish: str | None = None) -> None:
        for piece in pieces:
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": finish}
            await self.raw(b"data: %b\n\n" % json.dumps({"id": "c-1", "choices": [choice]}).encode())

    async def end(self) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        for chunk in ({"choices": [choice]}, {"choices": [], "usage": usage}):
            await self.raw(b"data: %b\n\n" % json.dumps(chunk).encode())
        await self.raw(b"data: [DONE]\n\n")
        self.hang_up()

    def hang_up(self) -> None:
        self._writer.close()


@pytest.fixture
async def streamer() -> AsyncIterator[Streamer]:
    streamer = Streamer()
    listener = await streamer.serve()
    yield streamer
    listener.close()
    await listener.wait_closed()
