"""Jobs in the midst of which the master is replaced, and what becomes of them. The provider's ledger is the judge."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis

from tasks import QueueUnavailable
from tasks.wire.record import read_outcome
from tests.support.waiting import wait_until

from .harness import MESSAGES, World
from .replicated import Replicated

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.results import PromptResult
    from tests.support.redis_server import RedisServer

__all__ = ["Row", "strike"]

PRODUCERS = 8
FLOW_S = 5.0
"""How soon after the new master's election results must be stored there."""


@dataclass
class Row:
    """What one failover did."""

    kind: str
    min_replicas: bool
    submitted: int = 0
    ended: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    """The provider's calls of each job that has no result."""
    failed: int = 0
    calls: int = 0
    flagged: int = 0
    unflagged: list[str] = field(default_factory=list)
    flow_s: float = 0.0
    """From the new master's election to the next results there."""
    wall_s: float = 0.0

    @property
    def promise_kept(self) -> bool:
        may_lose = not self.min_replicas and self.kind != "paused"
        is_whole = may_lose or not (self.lost or self.unflagged)
        return is_whole and not self.failed and self.flow_s <= FLOW_S


def strike(
    world: World, kind: str, *, min_replicas: bool, jobs: int, model: str = "steady", binary: Path | None = None
) -> Row:
    """Submit `jobs`, replace the master in their midst, and judge what has become of them."""
    servers = Replicated(world, min_replicas=min_replicas, proxied=kind == "cut off", binary=binary)
    for worker in [world.start_worker(url=servers.url, concurrency=25, wait=False) for _ in range(2)]:
        worker.wait_ready()
    row = Row(kind, min_replicas)
    began_at = time.monotonic()
    ids = [f"{kind.replace(' ', '-')}-{number}" for number in range(jobs)]
    with ThreadPoolExecutor(PRODUCERS) as threads:
        # Half wait in the queue when the master goes, the other half comes meanwhile.
        accepted = [threads.submit(_submit, world, job_id, model) for job_id in ids[: jobs // 2]]
        for each in accepted:
            each.result()
        wait_until(lambda: len(_ended(servers.master, ids)) >= jobs // 4, "a quarter has ended")
        accepted = [threads.submit(_submit, world, job_id, model) for job_id in ids[jobs // 2 :]]
        elected_at = servers.replace(kind)
        before = set(_ended(servers.replica, ids))
        wait_until(lambda: set(_ended(servers.replica, ids)) - before, "results at the new master")
        row.flow_s = time.monotonic() - elected_at
        for each in accepted:
            each.result()
    row.submitted = len(ids)
    results = _settled(servers.replica, ids)
    servers.end(kind)
    calls = world.providers.calls(model)
    row.ended = len(results)
    row.lost = {job_id: calls[job_id] for job_id in ids if job_id not in results}
    row.failed = sum(not result.ok for result in results.values())
    row.calls = sum(calls[job_id] for job_id in ids)
    row.flagged = sum(result.suspected_double_payment for result in results.values())
    twice = [job_id for job_id, result in results.items() if calls[job_id] > 1 and not result.suspected_double_payment]
    row.unflagged = sorted(twice)
    row.wall_s = time.monotonic() - began_at
    return row


def _submit(world: World, job_id: str, model: str) -> None:
    """Until it is accepted."""
    pause = threading.Event()
    while True:
        try:
            world.queue.submit(model=model, messages=MESSAGES, id=job_id)
        except QueueUnavailable:
            pause.wait(0.05)
        else:
            return


def _ended(server: RedisServer, ids: list[str]) -> dict[str, PromptResult]:
    with server.client() as client:
        try:
            records = client.mget([f"celery-task-meta-{job_id}" for job_id in ids])
        except redis.RedisError:
            return {}
    read = {job_id: read_outcome(job_id, record) for job_id, record in zip(ids, records, strict=True)}
    return {job_id: result for job_id, result in read.items() if result is not None}


def _settled(server: RedisServer, ids: list[str]) -> dict[str, PromptResult]:
    """The results, as soon as all have one, or nothing is left that could bring one."""

    def is_over() -> bool:
        with server.client() as client:
            waiting = client.hlen("unacked") + sum(client.llen(name) for name in _LISTS)
            waiting += client.zcard("pm:delayed:prompts")
        return not waiting or len(_ended(server, ids)) == len(ids)

    wait_until(is_over, "the queue is empty")
    return _ended(server, ids)


_LISTS = ("prompts", *(f"prompts\x06\x16{step}" for step in (3, 6, 9)))
