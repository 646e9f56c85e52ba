"""Redis fails over through Sentinel: promises.md row 25.

What is lost is bounded by replication: writes that the master had confirmed but not yet sent on. With
`min-replicas-to-write 1` set, a client's are confirmed when a replica has them; and a planned failover before which the
master's writes were paused leaves none behind.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tasks import PromptQueue, QueueUnavailable
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import PATIENCE_S, wait_until

from .failover import strike
from .harness import MESSAGES, promptmill

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.blocking import SyncJob, SyncQueue

    from .harness import World

FEW_JOBS = 12


@pytest.mark.promise(25)
def test_all_follow_the_master_and_lose_the_unreplicated_at_most(world: World) -> None:
    """Through a URL whose first sentinel is dead, so that everybody has to go on to the second."""
    master = world.start_redis()
    replica = world.enter(RedisServer(world.directory / "replica", f"replicaof 127.0.0.1 {master.port}"))
    sentinel = start_sentinel(world, master)
    wait_until(lambda: world.redis.info("replication")["connected_slaves"] == 1, "the replica follows")
    url = f"sentinel://127.0.0.1:{free_port()};sentinel://127.0.0.1:{sentinel.port}/0?master_name=mill"
    environ = {"PROMPTMILL_REDIS_URL": url, "PROMPTMILL_CATALOG": str(limited_catalog(world))}
    worker = world.start_worker(concurrency=4, app="workers", environ=environ)
    queue = PromptQueue(url).sync
    world.enter(queue)

    before = [queue.submit(model="slow", messages=MESSAGES) for _ in range(8)]
    world.wait_in_flight(before[:4], model="slow")
    assert world.redis.execute_command("WAIT", 1, int(PATIENCE_S * 1000)) == 1
    load = Load(queue)
    wait_until(lambda: len(load.accepted) >= FEW_JOBS, "jobs are submitted")
    killed_at = time.monotonic()
    master.kill()
    wait_until(lambda: is_master(replica) and known_master(sentinel) == replica.port, "the replica takes over")
    taken_over_at = time.monotonic()
    wait_until(lambda: load.count_since(taken_over_at) >= FEW_JOBS, "jobs are submitted to the new master")
    load.stop()

    results = [job.result(timeout_s=PATIENCE_S) for job in before]
    assert all(result.ok for result in results)
    # More than one call is for a failover longer than a lease: on a machine this busy, say.
    for result, calls in zip(results, world.calls(before, model="slow"), strict=True):
        assert calls == 1 or result.suspected_double_payment
    lost = [accepted_at for job, accepted_at in load.accepted if not is_answered(job)]
    assert all(accepted_at < killed_at for accepted_at in lost), "only the old master's last words may be missing"
    world.redis = world.enter(replica.client())
    world.wait_clean()  # the leases came along, and were given back at the new master
    assert worker.is_alive()
    check_commands(environ, before[0].id)


@pytest.mark.promise(42)
@pytest.mark.parametrize(("kind", "min_replicas"), [("paused", False), ("stop", True)])
def test_nothing_answered_is_lost_when_the_master_is_replaced(world: World, kind: str, *, min_replicas: bool) -> None:
    """All kinds, with 3,000 jobs each and in time: `make soak ARGS=failover`."""
    row = strike(world, kind, min_replicas=min_replicas, jobs=400)
    assert (row.lost, row.unflagged, row.failed) == ({}, [], 0), row


class Load:
    """Submits jobs from a thread, one at a time, each until it is accepted."""

    def __init__(self, queue: SyncQueue) -> None:
        self.accepted: list[tuple[SyncJob, float]] = []
        self._queue = queue
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._submit)
        self._thread.start()

    def _submit(self) -> None:
        while not self._stopping.wait(0.02):
            job_id = f"load-{len(self.accepted)}"
            try:
                job = self._queue.submit(model="quick", messages=MESSAGES, id=job_id)
            except QueueUnavailable:
                continue
            self.accepted.append((job, time.monotonic()))

    def count_since(self, moment: float) -> int:
        assert self._thread.is_alive(), "the client has failed in a way of its own"
        return sum(accepted_at > moment for _, accepted_at in self.accepted)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)


def is_answered(job: SyncJob) -> bool:
    return job.status() != "unknown" and job.result(timeout_s=PATIENCE_S).ok


def limited_catalog(world: World) -> Path:
    """The providers' catalogue with a limit, so that the limiter has something to do."""
    path = world.directory / "catalog.toml"
    text = world.providers.catalog.read_text()
    path.write_text(text.replace('provider = "quick"\n', 'provider = "quick"\nlimits = { rpm = 60000 }\n'))
    return path


def check_commands(environ: dict[str, str], job_id: str) -> None:
    """The operators' commands find the new master."""
    assert promptmill(environ, "status", job_id).split()[-1] == "succeeded"
    assert "no dead letters" in promptmill(environ, "dead", "list")
    [quick] = [json.loads(line) for line in promptmill(environ, "limits", "--json").splitlines() if "quick" in line]
    assert quick["settled"] > 0, "the limiter has counted at the new master"
    findings = json.loads(promptmill(environ, "doctor", "--json"))["findings"]
    assert {finding["level"] for finding in findings if finding["subject"] == "Redis"} == {"ok", "warning"}


def start_sentinel(world: World, master: RedisServer) -> RedisServer:
    watched = ("sentinel down-after-milliseconds mill 1000", "sentinel failover-timeout mill 3000")
    options = (f"sentinel monitor mill 127.0.0.1 {master.port} 1", *watched)
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
