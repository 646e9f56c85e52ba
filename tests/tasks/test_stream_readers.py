"""Readers of answers, against a stream that the test writes itself as workers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from tasks import Job, PromptQueue, PromptResult, StreamEvent, Usage
from tasks.streams import digest_of, number_of
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async

from .harness import celery_record


class Writer:
    """Writes one job's stream and result. `silently`: an entry whose publishing is lost."""

    def __init__(self, client: Any, job_id: str) -> None:
        self._client = client
        self._key = redis_keys.stream(job_id)
        self._job_id = job_id

    async def add(self, place: str, kind: str, text: str = "", *, silently: bool = False) -> None:
        await self._client.xadd(self._key, {kind: text}, id=place)
        if not silently:
            await self.publish(place, kind, text)

    async def publish(self, place: str, kind: str, text: str = "") -> None:
        await self._client.publish(self._key, f"{place} {kind} {text}")

    async def end(self, text: str, **options: Any) -> None:
        response = {"choices": [{"message": {"content": text}}]}
        result = PromptResult(self._job_id, "succeeded", text=text, response=response, attempts=1, **options)
        record = celery_record(self._job_id, result)
        await self._client.set(redis_keys.result(self._job_id), record, ex=3600)
        await self._client.publish(redis_keys.result(self._job_id), record)


class Reading:
    """A reader, and what it has been told so far."""

    def __init__(self, job: Job, after: int = 0) -> None:
        self.events: list[StreamEvent] = []
        self._job, self._after = job, after
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._job.events(self._after):
            self.events += [event]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    async def told(self, text: str) -> None:
        await wait_until_async(lambda: self.text == text, f"it is told {text!r}, not {self.text!r}")

    async def ended(self) -> list[str]:
        await self._task
        return self.kinds


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        await client.hset(redis_keys.job("job-1"), "state", "running")
        yield Writer(client, "job-1")


async def subscribed(client_url: str) -> None:
    async with redis.asyncio.Redis.from_url(client_url) as client:
        channel = redis_keys.stream("job-1")

        async def heard() -> bool:
            [(_, count)] = await client.pubsub_numsub(channel)
            return bool(count)

        await wait_until_async(heard, "the reader listens")


async def test_what_is_published_is_told_at_once(queue: PromptQueue, redis_server: RedisServer, writer: Writer) -> None:
    reading = Reading(queue.job("job-1"))
    await subscribed(redis_server.url)
    await writer.add("1-0", "b")
    await writer.add("1-3", "t", "24 ")
    await reading.told("24 ")
    await writer.add("1-8", "t", "clips")
    await reading.told("24 clips")
    await writer.add("1-10", "e", digest_of("24 clips"))
    await writer.end("24 clips", usage=Usage(input_tokens=9, output_tokens=5))
    assert await reading.ended() == ["started", "text", "text", "usage", "end"]


async def test_a_piece_that_was_not_heard_of_is_looked_up(
    queue: PromptQueue, redis_server: RedisServer, writer: Writer
) -> None:
    reading = Reading(queue.job("job-1"))
    await subscribed(redis_server.url)
    await writer.add("1-0", "b")
    await writer.add("1-3", "t", "24 ", silently=True)
    await writer.add("1-8", "t", "clips")
    await reading.told("24 clips")
    await writer.add("2-0", "b", silently=True)
    await writer.add("2-3", "t", "25 ")
    await reading.told("24 clips25 ")
    assert reading.kinds[-2:] == ["restarted", "text"]
    await writer.end("25 clips")
    assert (await reading.ended())[-2:] == ["text", "end"]
    assert reading.text == "24 clips25 clips"


async def test_what_is_said_twice_or_overlaps_is_told_once(
    queue: PromptQueue, redis_server: RedisServer, writer: Writer
) -> None:
    reading = Reading(queue.job("job-1"))
    await subscribed(redis_server.url)
    await writer.add("1-0", "b")
    await writer.add("1-3", "t", "24 ")
    await writer.publish("1-3", "t", "24 ")
    await writer.add("1-6", "t", "24 cli")
    await writer.add("1-8", "t", "ps")
    await reading.told("24 clips")
    await writer.end("24 clips")
    assert await reading.ended() == ["started", "text", "text", "text", "end"]


async def test_another_text_than_the_stream_had_is_not_joined_to_it(
    queue: PromptQueue, redis_server: RedisServer, writer: Writer
) -> None:
    """The worker died between the stream's end and the result, and another one answered without a stream."""
    reading = Reading(queue.job("job-1"))
    await subscribed(redis_server.url)
    await writer.add("1-0", "b")
    await writer.add("1-3", "t", "24 ")
    await writer.add("1-5", "e", digest_of("24 "))
    await reading.told("24 ")
    await writer.end("24 clips")
    assert await reading.ended() == ["started", "text", "restarted", "text", "end"]
    assert reading.events[3] == StreamEvent("text", number_of(2, 8), "24 clips")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("24 clips", ["started", "text", "text", "end"]),
        ("25 clips", ["started", "text", "restarted", "text", "end"]),
    ],
)
async def test_a_stream_without_its_end_is_held_against_the_result(
    queue: PromptQueue, redis_server: RedisServer, writer: Writer, text: str, kinds: list[str]
) -> None:
    """Redis did not take the end in time."""
    reading = Reading(queue.job("job-1"))
    await subscribed(redis_server.url)
    await writer.add("1-0", "b")
    await writer.add("1-3", "t", "24 ")
    await reading.told("24 ")
    await writer.end(text)
    assert await reading.ended() == kinds


async def test_who_comes_back_is_told_what_is_left(queue: PromptQueue, writer: Writer) -> None:
    for place, kind, text in (("1-0", "b", ""), ("1-3", "t", "24 "), ("1-8", "t", "clips"), ("2-0", "b", "")):
        await writer.add(place, kind, text)
    await writer.add("2-8", "t", "25 clips")
    await writer.add("2-10", "e", digest_of("25 clips"))
    await writer.end("25 clips")
    told = {
        after: [(event.kind, event.text) for event in [each async for each in queue.job("job-1").events(after)]]
        for after in (0, 2, number_of(2, 0), number_of(2, 3), number_of(2, 8))
    }
    assert told == {
        0: [("started", ""), ("text", "25 clips"), ("end", "")],
        2: [("restarted", ""), ("text", "25 clips"), ("end", "")],
        number_of(2, 0): [("text", "25 clips"), ("end", "")],
        number_of(2, 3): [("text", "clips"), ("end", "")],
        number_of(2, 8): [("end", "")],
    }
