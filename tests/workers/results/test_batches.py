"""Results on their way from the loop to Redis: in batches, tried until they are there, none held up by another."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.app.task import Context
from celery.exceptions import BackendStoreError

from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.pool.app import App
from workers.pool.greenlets import Cancellable, run_job
from workers.results.backend import Backend
from workers.results.entry import Entry, JSONResult
from workers.results.writer import BATCH_BYTES, HUGE_BYTES, BatchWriter, Writer

from .conftest import stored


def entry(job_id: str, *, record: bytes | None = None, group_id: str | None = None) -> Entry:
    text = b'{"status": "SUCCESS", "result": 1, "task_id": "%s"}' % job_id.encode()
    return Entry(f"celery-task-meta-{job_id}", record or text, True, "succeeded", job_id, group_id, "")


@pytest.fixture
async def writer(app: App) -> AsyncIterator[BatchWriter]:
    writer = BatchWriter(app.backend)
    yield writer
    await writer.aclose()


async def test_many_share_a_few_round_trips(writer: BatchWriter, client: redis.Redis) -> None:
    await writer.put(entry("first"))  # the script is loaded
    before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    await asyncio.gather(*(writer.put(entry(f"{number}")) for number in range(400)))
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 12
    assert all(stored(client, f"{number}")["status"] == "SUCCESS" for number in range(400))


async def test_one_that_redis_never_takes_does_not_keep_the_others(writer: BatchWriter, client: redis.Redis) -> None:
    client.lpush("a-list", 1)
    refused = entry("refused")._replace(key="a-list")  # WRONGTYPE, in the middle of the batch
    ends = await asyncio.gather(
        writer.put(entry("before")), writer.put(refused), writer.put(entry("after")), return_exceptions=True
    )
    assert [type(end) for end in ends] == [type(None), BackendStoreError, type(None)]
    assert stored(client, "before") and stored(client, "after")


async def test_a_groups_jobs_count_though_the_end_of_their_batch_fails(
    writer: BatchWriter, client: redis.Redis
) -> None:
    client.lpush("a-list", 1)
    ours = [writer.put(entry(f"{number}", group_id="pmg-1")) for number in range(3)]
    refused = writer.put(entry("refused")._replace(key="a-list"))
    await asyncio.gather(*ours, refused, return_exceptions=True)
    assert (
        int(client.hget(redis_keys.group("pmg-1"), "succeeded") or 0)
        == client.xlen(redis_keys.group_done("pmg-1"))
        == 3
    )


async def test_an_outage_of_redis_is_waited_out(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    app = App("outage", set_as_current=False)
    app.conf.update(broker_url=server.url, result_backend=f"workers.results:Backend+{server.url}")
    writer = BatchWriter(app.backend)
    try:
        server.close()
        waiting = [writer.put(entry("a")), writer.put(entry("b"))]
        _, pending = await asyncio.wait(waiting, timeout=0.3)
        assert len(pending) == 2
        server.start()
        async with asyncio.timeout(20):
            await asyncio.gather(*waiting)
        with server.client() as client:
            assert client.exists("celery-task-meta-a", "celery-task-meta-b") == 2
    finally:
        await writer.aclose()
        app.close()
        server.close()


@pytest.mark.parametrize("asks", ["state", "chord part"])
async def test_what_the_tracer_asks_of_an_absent_redis_waits_for_it(tmp_path: Path, asks: str) -> None:
    server = RedisServer(tmp_path)
    app = App("outage", set_as_current=False)
    app.conf.update(broker_url=server.url, result_backend=f"workers.results:Backend+{server.url}")
    request = Context(id="j", group="g", group_index=0, chord={"task": "t", "args": (), "kwargs": {}, "options": {}})

    def ask() -> object:
        if asks == "state":
            return app.backend.get_task_meta("j")["status"]
        return app.backend.on_chord_part_return(request, "SUCCESS", 1)

    try:
        server.close()
        waiting = asyncio.create_task(run_job(Cancellable(), object(), ask))
        _, pending = await asyncio.wait([waiting], timeout=0.3)
        assert pending
        server.start()
        async with asyncio.timeout(20):
            assert await waiting == ("PENDING" if asks == "state" else None)
    finally:
        app.close()
        server.close()


async def test_small_results_overtake_huge_ones(app: App, client: redis.Redis) -> None:
    writer = Writer(app.backend)
    ended: list[str] = []

    def put(each: Entry) -> asyncio.Future[None]:
        stored = writer.put(each)
        stored.add_done_callback(lambda _: ended.append(each.job_id))
        return stored

    noise = base64.b64encode(os.urandom(6 * 2**20))
    text = b"word " * (2 * 2**20)
    try:
        huge = [
            put(entry(name, record=b'{"status": "SUCCESS", "result": "%b"}' % body)._replace(is_large=True))
            for name, body in (("text", text), ("noise", noise), ("more", text))
        ]
        await asyncio.gather(*huge, *(put(entry(f"{number}")) for number in range(3)))
    finally:
        await writer.aclose()
    assert ended[:3] == ["0", "1", "2"]
    compressed = b"\0celery-compressed\0"
    records: dict[str, Any] = {name: client.get(f"celery-task-meta-{name}") for name in ("text", "noise")}
    assert [records[name].startswith(compressed) for name in ("text", "noise")] == [True, False]


async def test_a_batch_ends_at_so_many_bytes(writer: BatchWriter, client: redis.Redis) -> None:
    await writer.put(entry("first"))  # the script is loaded
    before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    record = b'{"status": "SUCCESS", "result": "%b"}' % (b"x" * (BATCH_BYTES // 2))
    await asyncio.gather(*(writer.put(entry(f"{number}", record=record)) for number in range(8)))
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before >= 4


def test_a_huge_answer_is_kept_as_its_record_and_can_be_read(backend: Backend) -> None:
    answer = JSONResult({"text": "word " * HUGE_BYTES}, compressible=True)
    made = backend.entry("j", answer, "SUCCESS", None, Context(id="j"))
    assert answer.record is made.record and "word" not in repr(answer)
    packed = made.packed()
    assert isinstance(packed.record, bytes) and packed.size < made.size / 10
    answer.keep_record(packed.record)
    assert answer.value == {"text": "word " * HUGE_BYTES}


@pytest.mark.parametrize(("group_id", "counted"), [("pmg-a", True), ("pmg-a:jobs", False), ("pmg-a:done", False)])
def test_a_group_whose_keys_are_another_groups_is_not_counted(app: App, group_id: str, counted: bool) -> None:
    """Of a stock producer; counting it would write into the list of the group pmg-a."""
    outcome = app.backend.entry("j", 1, "SUCCESS", None, Context(group=group_id))
    assert outcome.group_id == (group_id if counted else None)
