"""Redis fails over through Sentinel: promises.md row 25.

What is lost is bounded by replication: writes that the master had confirmed but not yet sent on. Here nothing is under
way when it dies, so nothing may be lost. With `min-replicas-to-write 1` and `min-replicas-max-lag` set, a master that
is cut off from its replica stops confirming after that lag; the bound is then the lag's writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis
from celery import Celery

from .harness import PATIENCE_S, RedisServer, wait_until

if TYPE_CHECKING:
    from .harness import World

SENTINELS = 1


def test_workers_follow_the_master_and_lose_what_was_not_replicated_at_most(world: World) -> None:
    world.start_redis()
    master = world.server
    replica = world.enter(RedisServer(world.directory / "replica", f"replicaof 127.0.0.1 {master.port}"))
    sentinel = start_sentinel(world, master)
    wait_until(lambda: world.redis.info("replication")["connected_slaves"] == 1, "the replica follows")
    url = f"sentinel://127.0.0.1:{sentinel.port}/0"
    worker = world.start_worker(
        concurrency=4, app="faults.sentinel_app", environ={"FAULTS_SENTINEL_URL": url}, lease_s=2.0
    )
    client = world.enter(Celery("client", broker=url, backend=url, set_as_current=False))
    client.conf.update(
        task_default_queue="prompts",
        broker_transport_options={"master_name": "mill"},
        result_backend_transport_options={"master_name": "mill"},
    )
    before = [client.send_task("faults.app.nap", args=[1.5]) for _ in range(8)]
    for nap in before[:4]:
        world.wait_started(nap.id)
    assert world.redis.execute_command("WAIT", 1, int(PATIENCE_S * 1000)) == 1
    master.kill()
    wait_until(lambda: is_master(replica) and known_master(sentinel) == replica.port, "the replica takes over")
    after = [client.send_task("faults.app.nap", args=[0.1]) for _ in range(2)]
    wait_until(lambda: all(ended(replica, nap.id) for nap in (*before, *after)), "all naps end")
    assert [len(world.starts(nap.id)) for nap in (*before, *after)] == [1] * 10
    assert worker.is_alive()


def start_sentinel(world: World, master: RedisServer) -> RedisServer:
    watched = ("sentinel down-after-milliseconds mill 1000", "sentinel failover-timeout mill 3000")
    options = (f"sentinel monitor mill 127.0.0.1 {master.port} {SENTINELS}", *watched)
    sentinel: RedisServer = world.enter(RedisServer(world.directory / "sentinel", *options, sentinel=True))
    with sentinel.client() as client:
        wait_until(lambda: client.sentinel_master("mill")["num-slaves"] == 1, "Sentinel knows the replica")
    return sentinel


def is_master(server: RedisServer) -> bool:
    with server.client() as client:
        return str(client.info("replication")["role"]) == "master"


def known_master(sentinel: RedisServer) -> int:
    with sentinel.client() as client:
        master = client.sentinel_master("mill")
    return 0 if master["is_odown"] or master["is_sdown"] else int(master["port"])


def ended(server: RedisServer, task_id: str) -> bool:
    try:
        with server.client() as client:
            return '"SUCCESS"' in str(client.get(f"celery-task-meta-{task_id}"))
    except redis.RedisError:
        return False
