"""A Redis found through Sentinel: the client follows the master, and says why there is none to follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks import PromptQueue, QueueUnavailable
from tasks.redis.address import Address
from tasks.redis.connection import RedisConnection
from tasks.redis.sentinel import MasterNotFound, search
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer, SentinelServer
from tests.support.waiting import PATIENCE_S, wait_until_async

from .harness import FakeWorker

MESSAGES = [{"role": "user", "content": "hello"}]
REDIS_PASSWORD = "canary-redis-81c2"
SENTINEL_PASSWORD = "canary-sentinel-07aa"


@dataclass(frozen=True, slots=True)
class Watched:
    """A master and a replica with a password, and the sentinel that watches them, with another."""

    master: RedisServer
    replica: RedisServer
    sentinel: SentinelServer

    def url(self, *, name: str = "mill", password: str = SENTINEL_PASSWORD, before: str = "") -> str:
        query = f"master_name={name}&sentinel_password={password}"
        return f"{before}sentinel://:{REDIS_PASSWORD}@127.0.0.1:{self.sentinel.port}/0?{query}"


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    folders = [tmp_path / name for name in ("master", "replica", "sentinel")]
    for folder in folders:
        folder.mkdir()
    login = (f"requirepass {REDIS_PASSWORD}", f"masterauth {REDIS_PASSWORD}")
    master = RedisServer(folders[0], *login)
    replica = RedisServer(folders[1], *login, f"replicaof 127.0.0.1 {master.port}")
    with redis.Redis(port=master.port, password=REDIS_PASSWORD) as client:
        # A sentinel asks who follows a master when it starts, and then every ten seconds.
        await wait_until_async(
            lambda: client.info("replication").get("slave0", {}).get("state") == "online",
            description="the replica follows",
        )
    settings = f"sentinel auth-pass mill {REDIS_PASSWORD}", f"requirepass {SENTINEL_PASSWORD}"
    sentinel = SentinelServer(folders[2], master, *settings)
    yield Watched(master, replica, sentinel)
    for server in (sentinel, replica, master):
        server.close()


def sentinel_client(watched: Watched) -> Any:
    return redis.Redis(port=watched.sentinel.port, password=SENTINEL_PASSWORD, decode_responses=True)


async def fail_over(watched: Watched, *, closing: bool) -> None:
    """Let the replica become master and the master a replica, as before a maintenance of its machine.

    `closing`: connections to the old master are closed, as Sentinel does; an operator's REPLICAOF leaves them open.
    """
    with sentinel_client(watched) as client:
        await wait_until_async(lambda: begins_failover(client), description="the sentinel has looked at the replica")
        await wait_until_async(
            lambda: client.sentinel_master("mill")["port"] == watched.replica.port, description="the failover"
        )
    # As Sentinel does when it next looks at the old master, up to ten seconds later.
    with redis.Redis(port=watched.master.port, password=REDIS_PASSWORD) as client:
        client.replicaof("127.0.0.1", watched.replica.port)
        if closing:
            client.client_kill_filter(_type="normal")
            client.client_kill_filter(_type="pubsub")


def begins_failover(sentinel: redis.Redis) -> bool:
    try:
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "mill"))
    except redis.ResponseError as error:
        assert "NOGOODSLAVE" in str(error), error
        return False


@pytest.mark.parametrize("closing", [True, False])
async def test_the_client_goes_on_at_the_new_master(watched: Watched, closing: bool) -> None:
    async with PromptQueue(watched.url()) as queue:
        with Address.of(watched.url()).client() as threads:
            before = await queue.submit(model="m", messages=MESSAGES)
            waiting = asyncio.create_task(before.result(timeout_s=60))
            await wait_until_async(threads.pubsub_channels, description="the subscription")
            threads.wait(1, 10_000)
            await fail_over(watched, closing=closing)
            assert await accepted(queue, "after"), "it does not try the old master again"
            await wait_until_async(lambda: is_at_the_master(threads), description="the client for threads follows")
        with FakeWorker(f"redis://:{REDIS_PASSWORD}@127.0.0.1:{watched.replica.port}/0", lambda body: "answer"):
            assert (await waiting).text == "answer"
            assert (await queue.job("after").result(timeout_s=10)).text == "answer"


def is_at_the_master(client: redis.Redis) -> bool:
    try:
        return bool(client.set("written", 1)) and client.llen("prompts\x06\x163") == 2
    except redis.RedisError:
        return False


async def accepted(queue: PromptQueue, job_id: str) -> bool:
    try:
        await queue.submit(model="m", messages=MESSAGES, id=job_id)
    except QueueUnavailable:
        return False
    return True


async def test_a_sentinel_that_is_frozen_or_gone_is_passed_over(watched: Watched, tmp_path: Path) -> None:
    frozen = RedisServer(tmp_path)
    others = f"sentinel://127.0.0.1:{free_port()};sentinel://127.0.0.1:{frozen.port};"
    try:
        with frozen.frozen():
            async with PromptQueue(watched.url(before=others)) as queue:
                assert await accepted(queue, "one")
            with Address.of(watched.url(before=others)).client() as threads:
                assert threads.ping()
    finally:
        frozen.close()


async def test_a_process_keeps_two_connections_to_a_sentinel(watched: Watched) -> None:
    with sentinel_client(watched) as client:
        own = client.client_id()

        def others() -> list[str]:
            connected = client.client_list("normal") + client.client_list("pubsub")
            return [row["id"] for row in connected if row["id"] != str(own) and row["user"] != "(superuser)"]

        async with PromptQueue(watched.url()) as queue:
            assert await accepted(queue, "one")
            with Address.of(watched.url()).client() as threads:
                assert threads.ping()
                await wait_until_async(lambda: len(others()) == 2, description="one that listens, one that asks")
        await wait_until_async(lambda: not others(), description="nothing is left open")


async def test_all_leave_the_master_before_a_replica_is_promoted(watched: Watched) -> None:
    """As in a planned failover, where the former master takes writes for some ten seconds more, and then loses them."""
    address = Address.of(watched.url())
    with address.client() as threads, ThreadPoolExecutor(1) as thread:
        async with PromptQueue(watched.url()) as queue:
            await queue.submit(model="m", messages=MESSAGES, id="before")
            waiting = asyncio.create_task(queue.job("before").result(timeout_s=60))
            blocked = thread.submit(blocking_read, threads)
            await wait_until_async(lambda: waiters(watched.master) == {"blpop", "result"}, description="both wait")
            threads.wait(1, 10_000)
            with sentinel_client(watched) as client:
                await wait_until_async(
                    lambda: begins_failover(client), description="the sentinel has looked at the replica"
                )
                await wait_until_async(lambda: told_port(client) == watched.replica.port, description="the failover")
            await wait_until_async(lambda: accepted(queue, "after"), description="the new master takes jobs")
            await wait_until_async(
                lambda: waiters(watched.replica) == {"blpop", "result"}, description="both wait there"
            )
            with redis.Redis(port=watched.master.port, password=REDIS_PASSWORD) as former:
                assert former.info("replication")["role"] == "master", "nobody has told it yet"
                assert not former.exists("pm:job:after")
            assert not waiters(watched.master)
            with FakeWorker(f"redis://:{REDIS_PASSWORD}@127.0.0.1:{watched.replica.port}/0", lambda body: "answer"):
                assert (await waiting).text == "answer"
            with redis.Redis(port=watched.replica.port, password=REDIS_PASSWORD) as new:
                new.rpush("nothing", "something")
            assert await asyncio.wrap_future(blocked)


def blocking_read(client: redis.Redis) -> Any:
    while True:
        try:
            return client.blpop(["nothing"], timeout=60)
        except redis.ConnectionError:
            continue


def waiters(server: RedisServer) -> set[str]:
    """Who waits for something there."""
    with redis.Redis(port=server.port, password=REDIS_PASSWORD, decode_responses=True) as client:
        blocked = {"blpop"} if any(row["cmd"] == "blpop" for row in client.client_list()) else set()
        return blocked | ({"result"} if client.pubsub_channels("celery-task-meta-*") else set())


def told_port(sentinel: redis.Redis) -> int:
    return int(sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "mill")[1])


async def test_a_master_without_replicas_is_asked_for_again_and_named(watched: Watched) -> None:
    with redis.Redis(port=watched.master.port, password=REDIS_PASSWORD) as direct:
        direct.config_set("min-replicas-to-write", 5)
    with Address.of(watched.url()).client() as threads:
        first = threads.client_id()
        with pytest.raises(redis.ConnectionError, match="NOREPLICAS: too few replicas"):
            threads.set("written", 1)
        assert threads.client_id() > first, "the connection was closed"
    connection = RedisConnection(Address.of(watched.url()), timeout_s=3)
    with pytest.raises(QueueUnavailable, match=r"too few replicas are in step with it \(min-replicas-to-write\)"):
        async with connection.border():
            await connection.redis.set("written", 1)
    await connection.aclose()


async def test_a_master_that_is_not_found_is_an_error_with_a_next_step(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SENTINEL_TIMEOUT_S", PATIENCE_S)  # a late answer would be none
    nowhere = f"sentinel://:{REDIS_PASSWORD}@127.0.0.1:{free_port()}/0?master_name=mill"
    no_sentinel = f"sentinel://127.0.0.1:{watched.master.port}/0?master_name=mill&sentinel_password={REDIS_PASSWORD}"
    cases = [
        (watched.url(name="mymaster"), r"know no master mymaster \(known: mill\); check master_name"),
        (watched.url(password="wrong"), "refused the user or password; check sentinel_username and sentinel_password"),
        (nowhere, "no sentinel answers .*ConnectionError.*check that they run"),
        (no_sentinel, "is no sentinel"),
    ]
    for url, text in cases:
        async with PromptQueue(url, timeout_s=3 if url is nowhere else PATIENCE_S) as queue:
            with pytest.raises(QueueUnavailable, match=text) as caught:
                await queue.submit(model="m", messages=MESSAGES)
        with Address.of(url).client() as threads, pytest.raises(MasterNotFound, match=text):
            threads.ping()
        assert "canary" not in str(caught.value) + repr(caught.value.__cause__)


async def test_a_master_that_is_down_is_told_apart(watched: Watched) -> None:
    watched.replica.close()
    watched.master.close()
    with sentinel_client(watched) as client:
        await wait_until_async(lambda: client.sentinel_master("mill")["is_sdown"], description="the sentinel notices")
    async with PromptQueue(watched.url(), timeout_s=3) as queue:
        with pytest.raises(QueueUnavailable, match="the master mill is down, and no replica has taken over yet"):
            await queue.submit(model="m", messages=MESSAGES)
