"""Where Redis asks for a replica (`min-replicas-to-write`), what a client is told is stored is at a replica too."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasks import PromptQueue, QueueUnavailable
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async

PROMPT = "canary-prompt-5d1e"
MESSAGES = [{"role": "user", "content": PROMPT}]
MIN_REPLICAS = "min-replicas-to-write"


@pytest.fixture
async def replica(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[RedisServer]:
    """Of `own_redis`, which takes no writes without it."""
    folder = tmp_path / "replica"
    folder.mkdir()
    server = RedisServer(folder, f"replicaof 127.0.0.1 {own_redis.port}")
    with own_redis.client() as client:
        await wait_until_async(
            lambda: client.info("replication").get("slave0", {}).get("state") == "online",
            description="the replica follows",
        )
        client.config_set(MIN_REPLICAS, 1)
    yield server
    server.close()


async def test_what_a_client_was_told_is_at_the_replica(own_redis: RedisServer, replica: RedisServer) -> None:
    async with PromptQueue(own_redis.url) as queue:
        with replica.client() as there:
            group = queue.new_group()
            for number in range(50):
                job = await group.submit(model="m", messages=MESSAGES)
                assert there.hget(f"pm:job:{job.id}", "state") == "queued", number
                assert await job.cancel()
                assert there.hexists(f"pm:job:{job.id}", "cancel"), number
            await group.close()
            assert there.hget(f"pm:group:{group.id}", "total") == "50"


async def test_what_no_replica_has_is_not_said_to_be_stored(own_redis: RedisServer, replica: RedisServer) -> None:
    async with PromptQueue(own_redis.url, timeout_s=3) as queue:
        before = await queue.submit(model="m", messages=MESSAGES)
        group = queue.new_group()
        with replica.frozen():
            for _ in range(2):  # the second finds the job stored, and no more at a replica than before
                with pytest.raises(QueueUnavailable, match="no replica said so in time") as caught:
                    await queue.submit(model="m", messages=MESSAGES, id="one")
                assert "submit it again with this id" in str(caught.value)
                assert PROMPT not in "".join(traceback.format_exception(caught.value))
            for call in (before.cancel, group.close):
                with pytest.raises(QueueUnavailable, match="no replica said so in time"):
                    await call()
        await queue.submit(model="m", messages=MESSAGES, id="one")
    with own_redis.client() as client:
        assert client.llen("prompts\x06\x163") == 2


async def test_a_script_that_fails_says_why_and_not_what(own_redis: RedisServer, replica: RedisServer) -> None:
    async with PromptQueue(own_redis.url) as queue:
        await queue.submit(model="m", messages=MESSAGES)
        with own_redis.client() as client:
            client.script_flush()
            await queue.submit(model="m", messages=MESSAGES, id="two")
            client.set("pm:cancelled", "not a sorted set")
            with pytest.raises(QueueUnavailable, match="WRONGTYPE") as caught:
                await queue.submit(model="m", messages=MESSAGES)
    assert PROMPT not in "".join(traceback.format_exception(caught.value))


async def test_a_replica_that_nobody_asks_for_is_not_waited_for(own_redis: RedisServer, replica: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set(MIN_REPLICAS, 0)
    async with PromptQueue(own_redis.url, timeout_s=3) as queue:
        with replica.frozen():
            await queue.submit(model="m", messages=MESSAGES)


async def test_a_setting_that_is_taken_back_is_noticed(own_redis: RedisServer, replica: RedisServer) -> None:
    async with PromptQueue(own_redis.url, timeout_s=3) as queue:
        await queue.submit(model="m", messages=MESSAGES)
        with own_redis.client() as client:
            client.config_set(MIN_REPLICAS, 0)
        with replica.frozen():
            with pytest.raises(QueueUnavailable, match="no replica said so"):
                await queue.submit(model="m", messages=MESSAGES, id="one")
            await queue.submit(model="m", messages=MESSAGES, id="one")
