"""Those who read results ride out an outage of Redis of up to `outage_s`; everything else is told in `timeout_s`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import pytest

from tasks import Group, PromptQueue, PromptResult, QueueUnavailable, ResultTimeout
from tasks.store.patience import Patience
from tasks.wire import redis_keys
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async

from .harness import celery_record

MESSAGES = [{"role": "user", "content": "Hello"}]
IDS = [f"job-{number}" for number in range(6)]
TIMEOUT_S = 1.0
OUTAGE_S = 30.0


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
async def queue(proxy: Proxy) -> AsyncIterator[PromptQueue]:
    url = f"redis://127.0.0.1:{proxy.port}/0"
    async with PromptQueue(url, timeout_s=TIMEOUT_S, outage_s=OUTAGE_S) as queue:
        yield queue


async def some_group(queue: PromptQueue) -> Group:
    return await queue.submit_many([{"model": "m", "messages": MESSAGES, "id": job_id} for job_id in IDS])


def end(server: RedisServer, group: Group, ids: list[str]) -> None:
    with server.client() as client:
        for job_id in ids:
            result = PromptResult(job_id, "succeeded", text="answer", response={})
            client.set(redis_keys.result(job_id), celery_record(job_id, result))
            client.xadd(redis_keys.group_done(group.id), {"id": job_id})
            client.hincrby(redis_keys.group(group.id), "succeeded", 1)


async def ids_of(items: Any) -> list[str]:
    return [item.id async for item in items]


READERS: dict[str, Callable[[PromptQueue, Group], Any]] = {
    "as_completed": lambda queue, group: ids_of(group.as_completed()),
    "jobs": lambda queue, group: ids_of(group.jobs()),
    "result": lambda queue, group: queue.job(IDS[0]).result(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_a_reader_that_begins_in_an_outage_waits_for_its_end(
    fault: Literal["refuse", "black_hole"], reader: str, queue: PromptQueue, proxy: Proxy, redis_server: RedisServer
) -> None:
    group = await some_group(queue)
    end(redis_server, group, IDS)
    proxy.set(fault)
    reading = asyncio.create_task(READERS[reader](queue, group))
    with pytest.raises(QueueUnavailable):  # so that the reader has failed once at least
        await queue.job(IDS[0]).status()
    await asyncio.wait([reading], timeout=2 * TIMEOUT_S)
    assert not reading.done()
    proxy.set("none")
    found = await asyncio.wait_for(reading, OUTAGE_S)
    assert (found.id if reader == "result" else found) == (IDS[0] if reader == "result" else IDS)


async def test_a_reader_goes_on_from_where_it_was(queue: PromptQueue, proxy: Proxy, redis_server: RedisServer) -> None:
    group = await some_group(queue)
    end(redis_server, group, IDS[:3])
    found: list[str] = []

    async def read() -> None:
        async for results in group.completed_batches():
            found.extend(result.id for result in results)

    reading = asyncio.create_task(read())
    await wait_until_async(lambda: len(found) == 3, description="three results are read")
    for _ in range(3):
        proxy.set("refuse")
        with pytest.raises(QueueUnavailable):
            await group.progress()
        proxy.set("none")
    end(redis_server, group, IDS[3:])
    await asyncio.wait_for(reading, OUTAGE_S)
    assert found == IDS


@pytest.mark.parametrize("reader", READERS)
async def test_a_longer_outage_is_told(reader: str, proxy: Proxy, redis_server: RedisServer) -> None:
    async with PromptQueue(f"redis://127.0.0.1:{proxy.port}/0", timeout_s=TIMEOUT_S, outage_s=1.0) as queue:
        group = await some_group(queue)
        proxy.set("refuse")
        since_s = time.monotonic()
        with pytest.raises(QueueUnavailable):
            await READERS[reader](queue, group)
        assert time.monotonic() - since_s >= 1.0


async def test_a_result_is_waited_for_no_longer_than_asked(queue: PromptQueue, proxy: Proxy) -> None:
    await some_group(queue)
    with pytest.raises(ResultTimeout):
        await queue.job(IDS[0]).result(timeout_s=0)
    proxy.set("refuse")
    since_s = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await queue.job(IDS[0]).result(timeout_s=0.5)
    assert time.monotonic() - since_s < OUTAGE_S / 2


async def test_calls_that_change_or_ask_something_do_not_wait(queue: PromptQueue, proxy: Proxy) -> None:
    group = await some_group(queue)
    proxy.set("refuse")
    job = queue.job(IDS[0])
    calls = [group.progress(), group.close(), job.status(), queue.submit(model="m", messages=MESSAGES), group.cancel()]
    since_s = time.monotonic()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - since_s < OUTAGE_S / 2
    assert [type(outcome) for outcome in outcomes] == [QueueUnavailable] * len(calls)


async def test_patience_counts_from_the_first_fault_until_an_answer() -> None:
    answers: list[QueueUnavailable | str] = [QueueUnavailable("no"), "yes"]

    async def call() -> str:
        answer = answers.pop(0) if answers else QueueUnavailable("no")
        if isinstance(answer, Exception):
            raise answer
        return answer

    patience = Patience(0.5)
    assert await patience.until_answered(call) == "yes"
    assert patience.fault is None
    since_s = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await patience.until_answered(call)
    assert time.monotonic() - since_s >= 0.5
