"""An answer on its way from the provider to its readers, through a worker's pipeline and Redis."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import aclosing
from typing import Any

import pytest

from tasks import JobFailed, Piece, ResultTimeout, UnknownJob
from tasks.wire import redis_keys
from workers.answers import Answers
from workers.prompt.job import Options, PromptJob

from .conftest import Mill, Streamer, first_told, kinds_of


async def test_the_text_comes_in_pieces_that_are_the_results(
    mill: Mill, simulate: Any, chat_job: Any, reading: Any
) -> None:
    simulator = await simulate(latency_ms=300, jitter=0)
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(simulator.url), job)
    events = await reading(handle.events())
    result = await handle.result()
    assert result.text
    assert [event.kind for event in events if event.kind != "text"] == ["started", "usage", "end"]
    texts = [event.text for event in events if event.kind == "text"]
    assert "".join(texts) == result.text
    assert events[-1].number == len(result.text)
    assert events[-2].usage == result.usage
    assert result.usage.output_tokens > 0, "a streamed call is asked for its usage"


async def test_anthropics_text_comes_in_pieces_too(mill: Mill, simulate: Any, chat_job: Any, reading: Any) -> None:
    simulator = await simulate(latency_ms=300, jitter=0, dialect="anthropic")
    job = chat_job(body={"max_tokens": 500}, stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(simulator.url, provider={"kind": "anthropic"}), job)
    pieces = await reading(handle.stream())
    result = await handle.result()
    assert "".join(pieces) == result.text
    assert result.usage.output_tokens > 1


async def test_the_first_of_two_completions_comes_in_pieces(mill: Mill, simulate: Any, reading: Any) -> None:
    simulator = await simulate(latency_ms=300, jitter=0)
    body = {"model": "m", "prompt": "How many clips?", "n": 2}
    job = PromptJob("job-1", "complete", "m", body, Options(stream=True))
    handle = await mill.submitted(job)
    mill.start(await mill.worker(simulator.url, provider={"apis": ["completions"]}), job)
    pieces = await reading(handle.stream())
    result = await handle.result()
    assert len(pieces) > 1 and "".join(pieces) == result.text
    assert len((result.response or {})["choices"]) == 2
    assert result.usage.output_tokens > 1


async def test_who_asks_before_the_call_gets_pieces(
    mill: Mill, streamer: Streamer, chat_job: Any, wait_until: Any
) -> None:
    worker = await mill.worker(streamer.url)
    job = chat_job()
    pieces: list[Piece] = []

    async def read() -> None:
        async for piece in (await mill.submitted(job)).stream():
            pieces.append(piece)  # noqa: PERF401 - what has come is looked at meanwhile

    task = asyncio.create_task(read())
    await wait_until(lambda: job.id in mill.asked[worker], "the worker has heard of the reader")
    mill.start(worker, job)
    call = await streamer.calls.get()
    await call.text("24 ")
    await wait_until(lambda: pieces == ["24 "], "the first piece has come")
    await call.text("clips")
    await call.end()
    await task
    assert "".join(pieces) == "24 clips"
    assert streamer.asked[0]["stream"] is True
    assert await mill.redis.zcard(redis_keys.STREAMS_ASKED) == 0, "the mark goes with the stream's end"


async def test_who_asks_during_the_call_gets_the_whole(
    mill: Mill, simulate: Any, chat_job: Any, wait_until: Any, reading: Any
) -> None:
    simulator = await simulate(latency_ms=300, jitter=0)
    job = chat_job()
    handle = await mill.submitted(job)
    mill.start(await mill.worker(simulator.url), job)
    await wait_until(lambda: simulator.stats()["in_flight"], "the call has begun")
    events = await reading(handle.events())
    assert [event.kind for event in events] == ["started", "text", "usage", "end"]
    assert events[1].text == (await handle.result()).text


@pytest.mark.promise(56)
async def test_a_job_without_a_reader_writes_nothing(mill: Mill, simulate: Any, chat_job: Any, client: Any) -> None:
    simulator = await simulate()
    worker = await mill.worker(simulator.url)
    client.config_resetstat()
    keys = set(client.keys("*"))
    for number in range(20):
        await worker.run(chat_job(f"plain-{number}"))
    assert set(client.keys("*")) == keys
    assert (
        not {"cmdstat_xadd", "cmdstat_publish", "cmdstat_evalsha", "cmdstat_eval"} & client.info("commandstats").keys()
    )
    assert simulator.stats()["calls"] == 20


async def test_a_reader_may_come_back_anywhere(mill: Mill, simulate: Any, chat_job: Any, reading: Any) -> None:
    simulator = await simulate(latency_ms=100, output_tokens=40)
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    await mill.start(await mill.worker(simulator.url), job)
    text = (await handle.result()).text or ""
    for place in range(len(text) + 1):
        assert "".join(await reading(mill.queue.job(job.id).stream(after=place))) == text[place:], place


@pytest.mark.promise(31)
async def test_a_reader_that_goes_and_comes_a_thousand_times(mill: Mill, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate(tokens_per_s=400, output_tokens=1_200, jitter=0, latency_ms=5)
    job = chat_job(body={"max_tokens": 1_200}, stream=True)
    handle = await mill.submitted(job)
    task = mill.start(await mill.worker(simulator.url), job)
    rng, text, place, visits = random.Random(7), "", 0, 0
    while visits < 1_000 or not task.done():
        visits += 1
        wanted = rng.randrange(3)
        async with aclosing(mill.queue.job(job.id).stream(after=place)) as pieces:
            async for piece in pieces:
                text, place, wanted = text + piece, piece.number, wanted - 1
                if wanted <= 0 and visits < 1_000:
                    break
    text += "".join([piece async for piece in handle.stream(after=place)])
    assert text == (await handle.result()).text


async def test_many_readers_share_a_connection(
    mill: Mill, streamer: Streamer, chat_job: Any, wait_until: Any, client: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url), job)
    found: list[list[str]] = [[] for _ in range(20)]

    async def read(pieces: list[str]) -> None:
        async for piece in handle.stream():
            pieces += [piece]

    readers = [asyncio.create_task(read(pieces)) for pieces in found]
    call = await streamer.calls.get()
    await call.text("24 ")
    await wait_until(lambda: all(found), "all have heard")
    subscribed = [each for each in client.client_list(_type="pubsub") if int(each["sub"]) > 0]
    assert len(subscribed) <= 3, "the worker's, and one each for streams and for results"
    await call.text("clips")
    await call.end()
    await asyncio.gather(*readers)
    assert {"".join(pieces) for pieces in found} == {"24 clips"}


async def test_streams_go_by_themselves(mill: Mill, streamer: Streamer, chat_job: Any, wait_until: Any) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    task = mill.start(await mill.worker(streamer.url, stream={"keep_s": 60}), job)
    call = await streamer.calls.get()
    await call.text("24 clips")
    key = redis_keys.stream(job.id)
    await wait_until(lambda: mill.redis.exists(key), "the stream is there")
    assert 3_600 < await mill.redis.ttl(key) <= redis_keys.RECORD_TTL_S, "as long as the job may take"
    await call.end()
    await task
    assert 0 < await mill.redis.ttl(key) <= 60
    await mill.redis.delete(key)
    assert [piece async for piece in handle.stream()] == ["24 clips"]
    assert [piece async for piece in handle.stream(after=3)] == ["clips"]


async def test_more_text_than_a_stream_takes_comes_at_the_end(
    mill: Mill, streamer: Streamer, chat_job: Any, wait_until: Any, reading: Any
) -> None:
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url, stream={"max_bytes": 10}), job)
    call = await streamer.calls.get()
    await call.text("0123456789")
    reader = await first_told(handle.events())
    await call.text("abc", "def")
    await call.end()
    events = await reader
    assert kinds_of(events) == ["started", "text", "full", "text", "usage", "end"]
    assert "".join(event.text for event in events) == "0123456789abcdef"


async def test_a_failed_job_says_so_after_its_text(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job(stream=True, max_attempts=1)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url), job)
    call = await streamer.calls.get()
    await call.text("24 ")
    pieces = []
    with pytest.raises(JobFailed) as raised:
        async for piece in handle.stream():
            pieces.append(piece)
            await call.raw(b'data: {"error": {"message": "The model is overloaded", "code": 503}}\n\n')
            call.hang_up()
    assert (pieces, raised.value.code) == (["24 "], "server_error")


async def test_the_wait_for_an_answer_may_end(mill: Mill, chat_job: Any, reading: Any) -> None:
    handle = await mill.submitted(chat_job())
    with pytest.raises(ResultTimeout):
        await reading(handle.stream(timeout_s=0.05))
    with pytest.raises(UnknownJob):
        await reading(mill.queue.job("never").stream())
    with pytest.raises(ValueError, match="after"):
        await reading(handle.stream(after=-1))


@pytest.mark.covers("catalog", "models.stream_only")
async def test_a_model_that_only_streams_is_collected(mill: Mill, streamer: Streamer, chat_job: Any) -> None:
    job = chat_job()
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url, stream_only=True), job)
    call = await streamer.calls.get()
    await call.text("24 ", "clips")
    await call.end()
    assert (await handle.result()).text == "24 clips"
    assert not await mill.redis.keys("pm:stream*"), "nobody reads"


@pytest.mark.covers("catalog", "providers.stream_options")
@pytest.mark.parametrize(("wanted", "sent"), [({}, {"include_usage": True}), ({"stream_options": False}, None)])
async def test_usage_is_asked_for_where_that_is_understood(
    mill: Mill, streamer: Streamer, chat_job: Any, wanted: Any, sent: Any
) -> None:
    job = chat_job(stream=True)
    task = mill.start(await mill.worker(streamer.url, provider=wanted), job)
    call = await streamer.calls.get()
    await call.text("24 clips")
    await call.end()
    await task
    assert streamer.asked[0].get("stream_options") == sent


async def test_a_provider_that_answers_whole_all_the_same(
    mill: Mill, raw_server: Any, reply: Any, chat_job: Any, reading: Any
) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "24 clips"}, "finish_reason": "stop"}]}
    server = await raw_server(reply(200, json.dumps(whole).encode()))
    job = chat_job(stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(server.url), job)
    assert await reading(handle.stream()) == ["24 clips"]


async def test_a_stored_answer_is_one_piece(
    mill: Mill, simulate: Any, chat_job: Any, reading: Any, client: Any, wait_until: Any
) -> None:
    simulator = await simulate()
    async with Answers(
        mill.redis, memory_bytes=10**6, redis_bytes=10**6, to_redis=float, redis_s=time.time, key_prefix=""
    ) as answers:
        worker = await mill.worker(simulator.url, answers=answers)
        first = await worker.run(chat_job("first", cache_ttl_s=60))
        await wait_until(lambda: client.keys("pm:answer:*"), "it is stored")
        job = chat_job("second", cache_ttl_s=60, stream=True)
        handle = await mill.submitted(job)
        mill.start(worker, job)
        assert await reading(handle.stream()) == [first.text]
    assert simulator.stats()["calls"] == 1


async def test_a_repaired_answer_is_not_spliced(
    mill: Mill, streamer: Streamer, chat_job: Any, reading: Any, wait_until: Any
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    job = chat_job(body={"response_format": form}, stream=True)
    handle = await mill.submitted(job)
    mill.start(await mill.worker(streamer.url), job)
    call = await streamer.calls.get()
    await call.text("{'n': ")
    reader = await first_told(handle.events())
    await call.text("24,}")
    await call.end()
    events = await reader
    result = await handle.result()
    assert kinds_of(events) == ["started", "text", "restarted", "text", "usage", "end"]
    begun = [event.kind for event in events].index("restarted")
    assert (result.repaired, "".join(event.text for event in events[begun:])) == ("syntax", result.text)


async def test_what_comes_within_a_moment_travels_together(
    mill: Mill, simulate: Any, chat_job: Any, client: Any, reading: Any
) -> None:
    simulator = await simulate(tokens_per_s=100, output_tokens=100, jitter=0, latency_ms=5)
    worker = await mill.worker(simulator.url)
    jobs = [chat_job(f"job-{number}", stream=True) for number in range(30)]
    handles = [await mill.submitted(job) for job in jobs]
    client.config_resetstat()
    for job in jobs:
        mill.start(worker, job)
    found = await asyncio.gather(*(reading(handle.stream()) for handle in handles))
    texts = [(await handle.result()).text or "" for handle in handles]
    assert ["".join(pieces) for pieces in found] == texts
    stats = client.info("commandstats")
    calls = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha", "xrange"))
    assert calls <= 0.1 * sum(map(len, texts)) / 4, "round trips a token"
