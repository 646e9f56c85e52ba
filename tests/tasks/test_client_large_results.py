"""Results of any size are read by pages of some megabytes, and a waiter of many is no exception."""

from __future__ import annotations

import asyncio
import zlib

import pytest

from tasks import Group, PromptQueue, PromptResult
from tasks.wire import redis_keys
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

from .harness import celery_record

MESSAGES = [{"role": "user", "content": "Hello"}]
MEGABYTE = 1_000_000


async def group_of(queue: PromptQueue, count: int) -> tuple[Group, list[str]]:
    ids = [f"job-{number:03}" for number in range(count)]
    return await queue.submit_many([{"model": "m", "messages": MESSAGES, "id": job_id} for job_id in ids]), ids


def store_answers(server: RedisServer, group: Group, ids: list[str], *, size: int, compressed: bool = False) -> None:
    with server.client() as client:
        for job_id in ids:
            result = PromptResult(job_id, "succeeded", text="x" * size, response={"choices": []})
            record = celery_record(job_id, result).encode()
            if compressed:
                record = b"\0celery-compressed\0application/x-gzip\0" + zlib.compress(record, 0)
            client.set(redis_keys.result(job_id), record)
            client.publish(redis_keys.result(job_id), record)
            client.xadd(redis_keys.group_done(group.id), {"id": job_id})
            client.hincrby(redis_keys.group(group.id), "succeeded", 1)


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_page_ends_at_four_megabytes(redis_server: RedisServer, compressed: bool) -> None:
    async with PromptQueue(redis_server.url) as queue:
        group, ids = await group_of(queue, 10)
        store_answers(redis_server, group, ids, size=MEGABYTE, compressed=compressed)
        pages = [[result.id for result in page] async for page in group.completed_batches()]
    assert max(map(len, pages)) <= 4
    assert [job_id for page in pages for job_id in page] == ids


async def test_a_result_larger_than_a_page_comes_alone(redis_server: RedisServer) -> None:
    async with PromptQueue(redis_server.url) as queue:
        group, ids = await group_of(queue, 2)
        store_answers(redis_server, group, ids, size=9 * MEGABYTE)
        assert [len(page) async for page in group.completed_batches()] == [1, 1]


async def test_a_slow_link_gets_smaller_pages(redis_server: RedisServer) -> None:
    """4 MB at a little more than 1 MB a second, in calls of a second."""
    proxy = Proxy(redis_server.port)
    try:
        async with PromptQueue(f"redis://127.0.0.1:{proxy.port}/0", timeout_s=1.0) as queue:
            group, ids = await group_of(queue, 20)
            store_answers(redis_server, group, ids, size=MEGABYTE // 5)
            proxy.set("slow")
            assert [result.id async for result in group.as_completed()] == ids
    finally:
        proxy.close()


async def test_many_wait_for_large_results(own_redis: RedisServer) -> None:
    """More than Redis keeps for a slow subscriber: it closes the link, and the results are looked up."""
    with own_redis.client() as client:
        client.config_set("client-output-buffer-limit", "pubsub 2mb 1mb 1")
    async with PromptQueue(own_redis.url) as queue:
        group, ids = await group_of(queue, 60)
        waiting = [asyncio.create_task(queue.job(job_id).result(timeout_s=60)) for job_id in ids]
        await asyncio.to_thread(store_answers, own_redis, group, ids, size=MEGABYTE)
        assert [result.id for result in await asyncio.gather(*waiting)] == ids
