"""One queue on several event loops, in threads and in forked processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tasks import PromptQueue
from tests.support.redis_server import RedisServer

from .harness import FakeWorker

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def url(redis_server: RedisServer) -> Iterator[str]:
    with FakeWorker(redis_server.url, lambda body: "answer"):
        yield redis_server.url


async def ask(queue: PromptQueue) -> str | None:
    return (await (await queue.submit(model="m", messages=MESSAGES)).result(timeout_s=10)).text


def ask_blocking(queue: PromptQueue) -> str | None:
    return queue.sync.submit(model="m", messages=MESSAGES).result(timeout_s=10).text


def test_one_queue_serves_one_loop_after_another(url: str, redis_server: RedisServer) -> None:
    queue = PromptQueue(url)
    assert asyncio.run(ask(queue)) == asyncio.run(ask(queue)) == "answer"
    with redis_server.client() as client:
        names = [entry["cmd"] for entry in client.client_list()]
    assert "subscribe" not in names and "unsubscribe" not in names, "the first loop's connections are closed"


SCRIPT = """
import asyncio, sys
from tasks import PromptQueue
queue = PromptQueue(sys.argv[1])

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # -X dev tells of a busy machine else
    job = await queue.submit(model="m", messages=[{"role": "user", "content": "Hello"}])
    return (await job.result(timeout_s=10)).text

print(asyncio.run(main()), asyncio.run(main()), queue.sync.submit(model="m", input="x").result(timeout_s=10).text)
"""


def test_a_script_that_closes_nothing_ends_cleanly(url: str) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT, url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("answer answer answer\n", "", 0)


async def test_async_and_blocking_use_at_once(url: str) -> None:
    async with PromptQueue(url) as queue:
        both = list(await asyncio.gather(ask(queue), asyncio.to_thread(ask_blocking, queue)))
    assert both == ["answer", "answer"]


def test_many_threads_share_the_blocking_face(url: str) -> None:
    queue = PromptQueue(url)
    with queue.sync, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: ask_blocking(queue), range(40))) == {"answer"}
        assert [thread.name for thread in threading.enumerate()].count("promptmill") == 1


def test_a_closed_blocking_face_opens_again(url: str) -> None:
    queue = PromptQueue(url)
    assert ask_blocking(queue) == "answer"
    queue.sync.close()
    assert "promptmill" not in [thread.name for thread in threading.enumerate()]
    assert ask_blocking(queue) == "answer"
    queue.sync.close()
    queue.sync.close()


async def test_closing_the_queue_closes_its_thread(url: str) -> None:
    async with PromptQueue(url) as queue:
        await asyncio.to_thread(ask_blocking, queue)
    assert "promptmill" not in [thread.name for thread in threading.enumerate()]


def _ask_in_child(queue: PromptQueue, answers: Any) -> None:
    answers.put((os.getpid(), ask_blocking(queue)))
    queue.sync.close()


def test_a_forked_process_starts_anew(url: str) -> None:
    queue = PromptQueue(url)
    assert ask_blocking(queue) == "answer"
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    children = [context.Process(target=_ask_in_child, args=(queue, answers)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert {answers.get() for _ in children} == {(child.pid, "answer") for child in children}
    answers.close()
    assert ask_blocking(queue) == "answer", "the parent's connections are untouched"
    queue.sync.close()


def test_rows_are_read_in_the_callers_thread(url: str) -> None:
    read_in = set()

    def rows() -> Iterator[dict[str, Any]]:
        for _ in range(300):
            read_in.add(threading.current_thread())
            yield {"model": "m", "messages": MESSAGES}

    queue = PromptQueue(url)
    with queue.sync as blocking:
        assert sum(answer.ok for answer in blocking.submit_many(rows()).as_completed()) == 300
    assert read_in == {threading.current_thread()}


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "BROKER_URL", "RESULT_URL", "KEY_PREFIX"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)
    assert repr(PromptQueue.from_env()) == "PromptQueue(localhost:6379, database 0)"
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://one:1/1")
    assert "one:1" in repr(PromptQueue.from_env())
    monkeypatch.setenv("PROMPTMILL_BROKER_URL", "redis://two:2/2")
    assert "two:2" in repr(PromptQueue.from_env(timeout_s=1))


async def test_results_may_be_in_another_redis(redis_server: RedisServer) -> None:
    broker = redis_server.url
    async with PromptQueue(broker, result_url=broker.replace("/0", "/1")) as queue:
        group = await queue.submit_many([{"model": "m", "messages": MESSAGES, "id": "apart"}])
        worker = FakeWorker(broker, lambda body: "answer")
        await _move_result(worker, redis_server, group.id)
        assert (await queue.job("apart").result(timeout_s=10)).text == "from the other database"
        assert [answer.text async for answer in group.as_completed()] == ["from the other database"]
        assert (await group.progress()).succeeded == 1


async def _move_result(worker: FakeWorker, server: RedisServer, group: str) -> None:
    """Store a result in database 1 alone."""
    import redis.asyncio

    from tasks import PromptResult

    async with redis.asyncio.Redis(port=server.port, db=1, decode_responses=True) as worker._redis:
        await worker.store("apart", group, PromptResult("apart", "succeeded", text="from the other database"))
