"""What breaks while an answer comes: the call, the worker, Redis. Whoever reads is never told what is not so."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from tasks import JobExpired, JobFailed, Piece, StreamEvent, StreamRestarted
from tasks.redis.cancellation import stop
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.streams import writer

from .conftest import Mill, Streamer, first_told, kinds_of


async def broken_off(mill: Mill, streamer: Streamer, job: Any, **worker: Any) -> tuple[asyncio.Task[None], Any]:
    """The job is run, and the first call has brought "24 " to Redis."""
    task = mill.start(await mill.worker(streamer.url, **worker), job)
    call = await streamer.calls.get()
    await call.text("24 ")
    await wait_until_async(lambda: mill.entries(job) == 2, "it is written")
    return task, call


@pytest.mark.promise(31)
@pytest.mark.parametrize(
    "error",
    [
        b"",
        b'data: {"error": {"message": "overloaded", "code": 503}}\n\n',
        b'data: {"error": {"message": "Rate limit reached.", "code": "rate_limit_exceeded"}}\n\n',
        b"data: {\n\n",
    ],
)
async def test_a_call_that_breaks_off_and_its_next(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any, error: bytes
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    _, call = await broken_off(mill, streamer, job)
    events: asyncio.Task[list[StreamEvent]] = await first_told(handle.events())
    pieces: asyncio.Task[list[Piece]] = await first_told(mill.queue.job(job.id).stream())
    await call.raw(error)
    call.hang_up()
    again = await streamer.calls.get()
    await again.text("25 clips")
    await again.end()
    found = await events
    result = await handle.result()
    assert kinds_of(found) == ["started", "text", "restarted", "text", "usage", "end"]
    restart = [event.kind for event in found].index("restarted")
    before, after = ("".join(event.text for event in part) for part in (found[:restart], found[restart:]))
    assert (before, after, result.text) == ("24 ", "25 clips", "25 clips")
    assert (result.attempts, result.suspected_double_payment) == (2, True)
    with pytest.raises(StreamRestarted, match="throw away") as restarted:
        await pieces
    assert "".join(await reading(handle.stream(after=restarted.value.number))) == "25 clips"
    with pytest.raises(StreamRestarted):
        await reading(handle.stream(after=found[1].number))
    assert "".join(await reading(handle.stream())) == "25 clips", "who begins now never saw the other"


@pytest.mark.parametrize("after", [1, 3])
async def test_what_was_read_of_two_calls_is_never_joined(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any, after: int
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    task, call = await broken_off(mill, streamer, job)
    call.hang_up()
    again = await streamer.calls.get()
    await again.text("25 clips")
    await again.end()
    await task
    await mill.redis.delete(redis_keys.stream(job.id))
    with pytest.raises(StreamRestarted):
        await reading(handle.stream(after=after))


async def test_a_silence_ends_the_call_which_is_not_repeated(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    await broken_off(mill, streamer, job, timeout={"read_s": 0.5})
    with pytest.raises(JobFailed, match="may have been paid for") as raised:
        await reading(handle.events())
    assert raised.value.code == "timeout"
    assert len(streamer.asked) == 1


@pytest.mark.parametrize(
    "ping",
    [
        b": still here\n\n",
        b'data: {"choices": []}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n',
    ],
)
async def test_pings_do_not_hold_a_job_for_ever(mill: Mill, streamer: Streamer, chat_job: Any, ping: bytes) -> None:
    job = chat_job(stream=True, max_attempts=1)
    handle = await mill.submitted(job)
    task = mill.start(await mill.worker(streamer.url, timeout={"total_s": 0.3}), job)
    call = await streamer.calls.get()
    await call.text("24 ")
    with suppress(ConnectionError):
        while not task.done():
            await call.raw(ping)
            await asyncio.wait([task], timeout=0.02)
    with pytest.raises(JobFailed) as raised:
        await handle.result()
    assert raised.value.code == "timeout"


async def test_an_answer_may_take_longer_than_the_first_piece_may(
    mill: Mill, streamer: Streamer, chat_job: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url, timeout={"total_s": 1.0}), job)
    call = await streamer.calls.get()
    for _ in range(12):
        await call.text("x")
        await asyncio.sleep(0.1)
    await call.end()
    assert (await handle.result()).text == "x" * 12


async def test_a_cancelled_job_hangs_up(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job(stream=True)
    await mill.submitted(job)
    task = mill.start(await mill.worker(streamer.url), job)
    call = await streamer.calls.get()
    await call.text("24 ")
    task.cancel()
    await asyncio.wait_for(streamer.hung_up.wait(), 1)


@pytest.mark.promise(31)
async def test_another_workers_answer_is_not_spliced(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    task, _ = await broken_off(mill, streamer, job)
    events: asyncio.Task[list[StreamEvent]] = await first_told(handle.events())
    await stop(task)
    mill.start(await mill.worker(streamer.url), job)
    again = await streamer.calls.get()
    await again.text("25 ", "clips")
    await again.end()
    found = await events
    assert [event.kind for event in found if event.kind != "text"] == ["started", "restarted", "usage", "end"]
    place = [event.kind for event in found].index("restarted")
    assert "".join(event.text for event in found[place:]) == "25 clips"


@pytest.mark.promise(31)
async def test_a_worker_that_comes_back_late_writes_nothing(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    late, call = await broken_off(mill, streamer, job)
    mill.start(await mill.worker(streamer.url), job)
    again = await streamer.calls.get()
    await again.text("25 ")
    await wait_until_async(lambda: mill.entries(job) == 4, "the other has begun")
    await call.text("clips of another")
    await again.text("clips")
    await again.end()
    result = await handle.result()
    await stop(late)
    assert result.text == "25 clips"
    assert "".join(await reading(handle.stream())) == "25 clips"


async def test_an_answer_without_its_end_is_no_answer(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job(stream=True, max_attempts=1)
    handle = await mill.submitted(job)
    _, call = await broken_off(mill, streamer, job)
    call.hang_up()
    with pytest.raises(JobFailed, match="middle of its answer") as raised:
        await handle.result()
    assert raised.value.code == "connection"


async def test_an_end_without_done_is_an_end(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url), job)
    call = await streamer.calls.get()
    await call.text("24 clips", finish="stop")
    call.hang_up()
    assert (await handle.result()).text == "24 clips"


async def test_an_answer_that_never_ends_is_too_large(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    task = mill.start(await mill.worker(streamer.url, http={"max_response_bytes": 100_000}), job)
    call = await streamer.calls.get()
    sent = 0
    while not task.done():
        sent += 1
        try:
            await call.text("x" * 1_000)
        except ConnectionError:
            break
        await asyncio.sleep(0)
    with pytest.raises(JobFailed) as raised:
        await handle.result()
    assert raised.value.code == "too_large"


async def test_a_key_in_the_text_reaches_nobody(
    mill: Mill, streamer: Streamer, chat_job: Any, key: str, reading: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    pieces: asyncio.Task[list[Piece]] = asyncio.create_task(reading(handle.stream()))
    mill.start(await mill.worker(streamer.url, stream={"coalesce_ms": 1}), job)
    call = await streamer.calls.get()
    for piece in ("your key is ", *key, ", and sk-", "canary too"):
        await call.text(piece)
        await asyncio.sleep(0.003)
    await call.end()
    text = "".join(await pieces)
    assert text == (await handle.result()).text == "your key is [key], and sk-canary too"


# -- Redis


@pytest.mark.promise(58)
async def test_an_answer_outlives_its_redis(
    own_redis: RedisServer, pipeline_to: Any, streamer: Streamer, chat_job: Any
) -> None:
    async with AsyncExitStack() as stack:
        mill = Mill(own_redis.url, pipeline_to, stack)
        stack.push_async_callback(mill.redis.aclose)
        worker = await mill.worker(streamer.url)
        task = asyncio.create_task(worker.run(chat_job(stream=True)))
        call = await streamer.calls.get()
        await call.text("24 ")
        await wait_until_async(lambda: mill.entries(chat_job()) == 2, "it is written")
        with own_redis.frozen():
            await call.text("clips")
            await call.end()
            result = await asyncio.wait_for(task, 10)
        await mill.close()
    assert (result.text, result.attempts) == ("24 clips", 1)


@pytest.mark.promise(58)
async def test_after_an_outage_of_redis_the_text_comes_on(
    own_redis: RedisServer,
    pipeline_to: Any,
    streamer: Streamer,
    chat_job: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(writer, "BATCH_TIMEOUT_S", 0.1)
    async with AsyncExitStack() as stack:
        mill = Mill(own_redis.url, pipeline_to, stack)
        stack.push_async_callback(mill.redis.aclose)
        job = chat_job(stream=True)
        handle = await mill.submitted(job)
        _, call = await broken_off(mill, streamer, job)
        with own_redis.frozen():
            await call.text("cli")
            await wait_until_async(lambda: "does not take streamed answers" in caplog.text, "it is noticed")
        await call.text("p or")
        await wait_until_async(
            lambda: mill.text(job) == "24 clip or", "what is missing is written while the call lasts"
        )
        await call.end()
        assert (await handle.result()).text == "24 clip or"
        await mill.close()


@pytest.mark.promise(57)
async def test_a_reader_outlives_its_link(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any, client: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    pieces: asyncio.Task[list[Piece]] = asyncio.create_task(reading(handle.stream()))
    mill.start(await mill.worker(streamer.url), job)
    call = await streamer.calls.get()
    sent = ""
    for number in range(20):
        await call.text(piece := f"piece {number}, ")
        sent += piece
        client.client_kill_filter(_type="pubsub")
        await asyncio.sleep(0.01)
    channel = redis_keys.stream(job.id)
    await wait_until_async(lambda: client.pubsub_numsub(channel) == [(channel.encode(), 1)], "it listens again")
    await call.end()
    assert "".join(await pieces) == sent == (await handle.result()).text


@pytest.mark.promise(58)
async def test_a_full_redis_takes_no_stream_and_no_answer_with_it(
    own_redis: RedisServer, pipeline_to: Any, simulate: Any, chat_job: Any
) -> None:
    simulator = await simulate(latency_ms=100)
    async with AsyncExitStack() as stack:
        mill = Mill(own_redis.url, pipeline_to, stack)
        stack.push_async_callback(mill.redis.aclose)
        worker = await mill.worker(simulator.url)
        with own_redis.client() as client:
            client.config_set("maxmemory", 1)
            result = await asyncio.wait_for(worker.run(chat_job(stream=True)), 10)
            assert not client.keys("pm:stream:*")
        await mill.close()
    assert (result.ok, simulator.stats()["calls"]) == (True, 1)


@pytest.mark.promise(57)
async def test_a_stream_that_is_deleted_leaves_no_gap(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    _, call = await broken_off(mill, streamer, job)
    events: asyncio.Task[list[StreamEvent]] = await first_told(handle.events())
    await mill.redis.delete(redis_keys.stream(job.id))
    await call.text("clips")
    await call.end()
    found = await events
    assert "".join(event.text for event in found) == "24 clips"
    assert await mill.redis.exists(redis_keys.stream(job.id)) == 0


async def test_a_fallbacks_answer_is_not_joined_to_what_came_before(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any
) -> None:
    job = chat_job(stream=True, fallbacks=["e"], max_attempts=2)
    handle = await mill.submitted(job)
    _, call = await broken_off(mill, streamer, job)
    events: asyncio.Task[list[StreamEvent]] = await first_told(handle.events())
    call.hang_up()
    again = await streamer.calls.get()
    await again.text("25 clips")
    await again.end()
    kinds = kinds_of(await events)
    result = await handle.result()
    assert [asked["model"] for asked in streamer.asked] == ["upstream-m", "upstream-e"]
    assert kinds == ["started", "text", "restarted", "text", "usage", "end"]
    assert (result.text, result.answered_by) == ("25 clips", "p/upstream-e")


async def test_a_deadline_ends_the_call_and_the_reading(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job(stream=True, deadline_at=time.time() + 1.0)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url), job)
    call = await streamer.calls.get()
    await call.text("24 ")
    text = ""
    with pytest.raises(JobExpired):
        async for piece in handle.stream():
            text += piece
    assert text == "24 "
    await asyncio.wait_for(streamer.hung_up.wait(), 5)
