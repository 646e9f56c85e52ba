"""The master is replaced under load: `make soak ARGS=failover`, or `python -m tests.soak failover --jobs 3000`.

Each kind of failover, with and without `min-replicas-to-write 1`, strikes two real workers in the middle of their jobs,
which a client submits all the while. The simulated provider's ledger is the judge: every job that was accepted must
end, and every second call for one be flagged `suspected_double_payment`. Without `min-replicas` what a master had
confirmed that the others did not hear of may be lost; it is counted. Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tasks import QueueUnavailable
from tasks.outcome import read_outcome
from tasks.results import PromptResult

from ..faults.harness import MESSAGES, Providers, RedisServer, World, wait_until
from ..faults.replicated import KINDS, Replicated

__all__ = ["Row", "add_options", "run", "strike"]

MODEL = "steady"
LATENCY_MS = 100
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
    lost: list[str] = field(default_factory=list)
    failed: int = 0
    calls: int = 0
    flagged: int = 0
    unflagged: list[str] = field(default_factory=list)
    flow_s: float = 0.0
    """From the new master's election to the next results there."""
    wall_s: float = 0.0

    @property
    def promise_kept(self) -> bool:
        is_whole = not (self.lost or self.unflagged) or not self.min_replicas
        return is_whole and not self.failed and self.flow_s <= FLOW_S


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=3_000, help="for each failover")
    parser.add_argument("--only", default="", help="only kinds whose name contains this")
    parser.add_argument("--replicas", choices=("with", "without", "both"), default="both", help="min-replicas")
    parser.add_argument("--redis", type=Path, help="another redis-server; 6.2 does not refuse scripts")


def run(options: argparse.Namespace) -> bool:
    """Whether every promise was kept."""
    print(_HEADER)
    rows = []
    for kind in KINDS:
        for min_replicas in (True, False):
            asked = options.replicas == "both" or (options.replicas == "with") == min_replicas
            if options.only in kind and asked:
                rows.append(_play(kind, min_replicas, options))
                _print_row(rows[-1])
    return all(row.promise_kept for row in rows)


def _play(kind: str, min_replicas: bool, options: argparse.Namespace) -> Row:
    with contextlib.ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="soak-failover-")))
        providers = Providers(directory, {MODEL: LATENCY_MS})
        closing.callback(providers.close)
        recorder = RedisServer(directory / "recorder")
        closing.callback(recorder.close)
        with World(directory, providers, recorder.url) as world:
            return strike(world, kind, min_replicas=min_replicas, jobs=options.jobs, binary=options.redis)


def strike(
    world: World, kind: str, *, min_replicas: bool, jobs: int, model: str = MODEL, binary: Path | None = None
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
    row.lost = sorted(set(ids) - results.keys())
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
_HEADER = f"{'failover':<10}{'min-replicas':<14}" + "".join(
    f"{name:>11}"
    for name in ("submitted", "ended", "lost", "failed", "calls", "flagged", "unflagged", "flow_s", "wall_s", "kept")
)


def _print_row(row: Row) -> None:
    numbers = (row.submitted, row.ended, len(row.lost), row.failed, row.calls, row.flagged, len(row.unflagged))
    kept = "yes" if row.promise_kept else "NO"
    print(
        f"{row.kind:<10}{'with' if row.min_replicas else 'without':<14}"
        + "".join(f"{number:>11}" for number in numbers)
        + f"{row.flow_s:>11.2f}{row.wall_s:>11.1f}{kept:>11}",
        flush=True,
    )
