"""Redis down, frozen, full, wiped, restarted: clear errors in time, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import redis.exceptions
import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tasks import PromptQueue, QueueFull, QueueUnavailable, ResultTimeout, UnknownJob
from tasks.redis.address import Address
from tasks.redis.connection import RedisConnection
from tasks.wire import redis_keys
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until_async

from .harness import FakeWorker, Gate

MESSAGES = [{"role": "user", "content": "Hello"}]
PASSWORD = "canary-password-5d1f"
TIMEOUT_S = 1.0
MAX_GAP_S = 0.8 * TIMEOUT_S
"""A blocking call would show as the whole time-out; measured are 4 to 20 ms, and an idle loop here has 1 to 17."""


class LoopGaps:
    """The longest time for which the event loop did not come round."""

    longest_s = 0.0

    async def watch(self) -> None:
        with Stopwatch() as stopwatch:
            before_s = 0.0
            while True:
                await asyncio.sleep(0)
                now_s = stopwatch.elapsed_s
                self.longest_s = max(self.longest_s, now_s - before_s)
                before_s = now_s


@asynccontextmanager
async def loop_gaps() -> AsyncIterator[LoopGaps]:
    gaps = LoopGaps()
    watching = asyncio.create_task(gaps.watch())
    try:
        yield gaps
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


async def raised(call: Any) -> QueueUnavailable:
    with pytest.raises(QueueUnavailable) as caught:
        await call
    return caught.value


async def test_a_frozen_redis_neither_blocks_the_loop_nor_the_caller(own_redis: RedisServer) -> None:
    async with PromptQueue(own_redis.url, timeout_s=TIMEOUT_S) as queue:
        await queue.submit(model="m", messages=MESSAGES)
        with own_redis.frozen():
            async with loop_gaps() as gaps:
                calls = [raised(queue.submit(model="m", messages=MESSAGES, id=f"try-{n}")) for n in range(50)]
                errors = await asyncio.wait_for(asyncio.gather(*calls), 3 * TIMEOUT_S)
        assert "try-0" in str(errors[0]) and "submit it again with this id" in str(errors[0])
        assert f"127.0.0.1:{own_redis.port}" in str(errors[0])
        assert gaps.longest_s < MAX_GAP_S
        again = await queue.submit(model="m", messages=MESSAGES, id="try-0")
        assert await again.status() == "queued"


async def test_a_black_hole_does_not_block_the_loop() -> None:
    with black_hole() as port:
        async with PromptQueue(f"redis://127.0.0.1:{port}/0", timeout_s=TIMEOUT_S) as queue, loop_gaps() as gaps:
            await raised(asyncio.wait_for(queue.submit(model="m", messages=MESSAGES), 3 * TIMEOUT_S))
        assert gaps.longest_s < MAX_GAP_S


@pytest.mark.promise(10)
async def test_each_call_gives_a_black_hole_up_in_time() -> None:
    with black_hole() as port:
        url = f"redis://user:{PASSWORD}@127.0.0.1:{port}/0"
        async with PromptQueue(url, timeout_s=0.1, outage_s=0.2) as queue:
            for call in every_call(queue):
                error = await asyncio.wait_for(raised(call()), 3)
                assert "did not answer within 0.1 s" in str(error)
                assert PASSWORD not in str(error) + repr(queue)


def every_call(queue: PromptQueue) -> list[Callable[[], Any]]:
    job, group = queue.job("job-1"), queue.group("group-1")
    return [
        lambda: queue.submit(model="m", messages=MESSAGES),
        lambda: group.extend([{"model": "m", "messages": MESSAGES}]),
        lambda: queue.forget("job-1"),
        job.status,
        job.result,
        job.cancel,
        group.progress,
        group.close,
        group.cancel,
        lambda: anext(group.as_completed()),
        lambda: anext(group.jobs()),
    ]


async def test_a_closed_port_says_so() -> None:
    async with PromptQueue(f"redis://127.0.0.1:{free_port()}/0", timeout_s=2) as queue:
        for call in every_call(queue)[:3]:
            assert "can't be reached" in str(await raised(call()))


def test_the_blocking_face_raises_the_same() -> None:
    queue = PromptQueue(f"redis://127.0.0.1:{free_port()}/0", timeout_s=2)
    with queue.sync as blocking, pytest.raises(QueueUnavailable, match="can't be reached"):
        blocking.submit(model="m", messages=MESSAGES)


@pytest.mark.promise(11)
async def test_a_full_redis_refuses_whole_batches(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        async with PromptQueue(own_redis.url) as queue:
            await queue.submit(model="m", messages=MESSAGES)
            client.config_set("maxmemory", "1kb")
            with pytest.raises(QueueFull, match="raise maxmemory"):
                await queue.submit(model="m", messages=MESSAGES, id="refused")
            with pytest.raises(QueueFull):
                await queue.new_group("g").extend([{"model": "m", "messages": MESSAGES}] * 3)
            assert client.llen("prompts\x06\x163") == 1
            client.config_set("maxmemory", "0")
            assert await queue.job("refused").status() == "unknown"
            await queue.submit(model="m", messages=MESSAGES, id="refused")


async def test_a_replica_is_named_as_such(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.replicaof("127.0.0.1", free_port())
        async with PromptQueue(own_redis.url) as queue:
            assert "read-only replica" in str(await raised(queue.submit(model="m", messages=MESSAGES)))


async def test_a_wrong_password_is_named_as_such(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set("requirepass", "right")
        async with PromptQueue(f"redis://:{PASSWORD}@127.0.0.1:{own_redis.port}/0") as queue:
            for call in (queue.submit(model="m", messages=MESSAGES), anext(queue.group("g").as_completed())):
                error = await asyncio.wait_for(raised(call), 20)  # no outage, which readers would ride out for longer
                assert "credentials" in str(error) and PASSWORD not in str(error)


async def test_a_dropped_link_loses_no_result(own_redis: RedisServer) -> None:
    gate = Gate()
    with FakeWorker(own_redis.url, gate.holding("late")), own_redis.client() as client:
        async with PromptQueue(own_redis.url) as queue:
            jobs = [await queue.submit(model="m", messages=MESSAGES) for _ in range(30)]
            waiting = [asyncio.create_task(job.result(timeout_s=20)) for job in jobs]
            await wait_until_async(lambda: len(client.pubsub_channels()) == 30, description="all have subscribed")
            client.client_kill_filter(_type="pubsub", skipme=True)
            await wait_until_async(lambda: len(client.pubsub_channels()) == 30, description="all have subscribed again")
            gate.open()
            assert {answer.text for answer in await asyncio.gather(*waiting)} == {"late"}
            await wait_until_async(lambda: client.pubsub_channels() == [], description="nobody listens any more")


async def test_a_restart_of_redis_is_ridden_out(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever looks at the new Redis before the job is there again hears that nobody knows it.
    monkeypatch.setattr("tasks.store.subscriptions._RECONNECT_S", 2.0)
    async with PromptQueue(own_redis.url) as queue:
        job = await queue.submit(model="m", messages=MESSAGES)
        waiting = asyncio.create_task(job.result(timeout_s=20))
        with own_redis.client() as client:
            await wait_until_async(client.pubsub_channels, description="the subscription")
        own_redis.close()
        own_redis.start()
        # The job itself is gone, with this Redis; the next one of its id is what is waited for.
        await queue.submit(model="m", messages=MESSAGES, id=job.id)
        with FakeWorker(own_redis.url, lambda body: "after the restart"):
            assert (await waiting).text == "after the restart"


@pytest.mark.promise(9)
async def test_a_wiped_redis_ends_the_waiting(own_redis: RedisServer) -> None:
    async with PromptQueue(own_redis.url) as queue:
        job = await queue.submit(model="m", messages=MESSAGES)
        group = await queue.submit_many([{"model": "m", "messages": MESSAGES}])
        waiting = asyncio.create_task(job.result())
        reading = asyncio.ensure_future(anext(group.as_completed()))
        with own_redis.client() as client:
            await wait_until_async(client.pubsub_channels, description="the subscription")
            client.flushall()
        for task in (waiting, reading):
            with pytest.raises(UnknownJob):
                await task


async def test_an_outage_beyond_patience_is_reported(own_redis: RedisServer) -> None:
    async with PromptQueue(own_redis.url, timeout_s=2.0, outage_s=0.1) as queue:
        job = await queue.submit(model="m", messages=MESSAGES)
        waiting = asyncio.create_task(job.result())
        with own_redis.client() as client:
            await wait_until_async(client.pubsub_channels, description="the subscription")
        own_redis.close()
        with pytest.raises(QueueUnavailable, match="can't be reached"):
            await waiting
        assert not isinstance(waiting.exception(), ResultTimeout)


async def test_a_dead_link_is_not_mistaken_for_a_slow_job(own_redis: RedisServer) -> None:
    async with PromptQueue(own_redis.url, timeout_s=0.3) as queue:
        job = await queue.submit(model="m", messages=MESSAGES)
        own_redis.close()
        with pytest.raises(QueueUnavailable, match="may have ended"):
            await job.result(timeout_s=1)


async def test_a_result_without_its_record_is_still_a_result(own_redis: RedisServer) -> None:
    with FakeWorker(own_redis.url, lambda body: "answer"), own_redis.client() as client:
        async with PromptQueue(own_redis.url) as queue:
            job = await queue.submit(model="m", messages=MESSAGES)
            await job.result(timeout_s=10)
            client.delete(redis_keys.job(job.id))
            assert (await queue.job(job.id).result()).text == "answer"


async def test_a_cancelled_waiter_leaves_the_others_alone(own_redis: RedisServer) -> None:
    gate = Gate()
    with FakeWorker(own_redis.url, gate.holding("late")):
        async with PromptQueue(own_redis.url) as queue:
            job = await queue.submit(model="m", messages=MESSAGES)
            leaving, staying = (asyncio.create_task(queue.job(job.id).result(timeout_s=10)) for _ in range(2))
            await wait_until_async(lambda: queue.job(job.id).status(), description="a round trip")
            leaving.cancel()
            await asyncio.wait([leaving])
            gate.open()
            assert (await staying).text == "late"


def test_uvloop_too_replaces_a_connection_that_broke_unread(own_redis: RedisServer) -> None:
    """In the middle of a pipeline, say: uvloop has a RuntimeError of its own for a write to it."""

    async def write_after_break() -> None:
        async with Address.of(own_redis.url).async_client(retry=Retry(NoBackoff(), 0)) as client:
            link = await client.connection_pool.get_connection()
            link._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(redis.exceptions.ConnectionError, match="connection is closed"):
                await link.send_command("PING")
            await client.connection_pool.release(link)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_after_break())


async def test_a_link_that_its_reader_closes_is_broken_to_its_writer(own_redis: RedisServer) -> None:
    """On a flapping link it was an AttributeError, which nobody retrieved; the waiter's subscriptions stood still."""
    async with Address.of(own_redis.url).async_client(retry=Retry(NoBackoff(), 0)) as client:
        link = await client.connection_pool.get_connection()
        sending = asyncio.create_task(link.send_command("PING"))
        await asyncio.sleep(0)  # it has seen that the link stands
        await link.disconnect(nowait=True)
        with pytest.raises(redis.exceptions.ConnectionError, match="connection is closed"):
            await sending
        await client.connection_pool.release(link)


# -- the border


def redis_errors() -> list[type[Exception]]:
    found = [cls for _, cls in inspect.getmembers(redis.exceptions, inspect.isclass)]
    return [cls for cls in found if issubclass(cls, redis.exceptions.RedisError)]


@pytest.mark.parametrize("kind", redis_errors(), ids=lambda kind: kind.__name__)
async def test_every_error_of_redis_becomes_ours(kind: type[Exception]) -> None:
    connection = RedisConnection(Address.of(f"redis://:{PASSWORD}@example.invalid/3"), timeout_s=1)
    error = connection.translated(kind.__new__(kind), "Do this next.")
    assert isinstance(error, QueueUnavailable)
    assert str(error).startswith("Redis at example.invalid:6379, database 3 ")
    assert str(error).endswith("Do this next.")
    await connection.aclose()
