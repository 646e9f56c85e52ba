"""The long kill loop: `make soak ARGS=kills`, or `python -m tests.soak kills --jobs 5000`.

Prompt jobs run under load on real workers while one fault after another strikes. The simulated provider's ledger is
the judge: each job must end once, and more than one call for a job is allowed only for jobs that were in flight at a
kill, every one of them flagged `suspected_double_payment`. Prints a table fault by fault; exit code 1 if a promise was
broken.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from tasks.results import PromptResult
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.system.faults.fleet import LEASE_S, Fleet
from tests.system.faults.harness import MESSAGES, Providers, World

__all__ = ["add_options", "run"]

AOF_ALWAYS = ("appendonly yes", "appendfsync always")
MODEL = "steady"
LATENCY_MS = 300
PATIENCE_S = 180.0


@dataclass
class Row:
    """What one kind of fault did to its share of the jobs."""

    fault: str
    times: int
    submitted: int = 0
    ended: int = 0
    lost: int = 0
    failed: int = 0
    calls: int = 0
    above_one: int = 0
    flagged: int = 0
    unflagged: int = 0
    wall_s: float = 0.0
    noticed_s: float = 0.0
    """The longest time from a worker's death until its jobs were given back, or until they were called again after the
    last strike at a worker that may have had them."""

    may_call_twice: bool = False

    @property
    def promise_kept(self) -> bool:
        twice_is_fine = self.may_call_twice or not self.above_one
        return not (self.lost or self.failed or self.unflagged) and twice_is_fine and self.noticed_s <= 10


def run(options: argparse.Namespace) -> bool:
    """Whether every promise was kept."""
    with contextlib.ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        providers = Providers(directory, {MODEL: LATENCY_MS})
        closing.callback(providers.close)
        recorder = RedisServer(directory / "recorder")
        closing.callback(recorder.close)
        rows = list(_play(World(directory, providers, recorder.url), options))
    _print_row("ALL", rows)
    return all(row.promise_kept for row in rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=5_000, help="in all")
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--redis-kills", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=3, help="CLIENT KILL of everything")
    parser.add_argument("--freezes", type=int, default=2, help="SIGSTOP beyond the lease, then SIGCONT")
    parser.add_argument("--take-windows", type=int, default=20, help="SIGSTOP of an idle worker, one job, kill -9")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)


def _play(world: World, options: argparse.Namespace) -> Iterator[Row]:
    random.seed(options.seed)
    with world:
        world.start_redis(*AOF_ALWAYS)
        fleet = Fleet(world, size=options.workers, concurrency=options.concurrency)
        kills = options.worker_kills + options.redis_kills + options.cuts + options.freezes
        a_fault = options.jobs // max(kills, 1)

        def kill() -> None:
            fleet.kill(random.randrange(options.workers))

        def freeze() -> None:
            fleet.freeze(random.randrange(options.workers), 8.0)

        print(_HEADER)
        yield _strike(world, "worker kill -9", kill, options.worker_kills, a_fault, may_call_twice=True)
        yield _strike(world, "Redis kill -9", world.server.crash, options.redis_kills, a_fault)
        yield _strike(world, "CLIENT KILL of all", world.server.cut, options.cuts, a_fault)
        yield _strike(world, "SIGSTOP 8 s, SIGCONT", freeze, options.freezes, a_fault, may_call_twice=True)
        yield _take_windows(world, fleet, options.take_windows)


def _strike(
    world: World, fault: str, strike: Callable[[], None], times: int, jobs_each: int, *, may_call_twice: bool = False
) -> Row:
    row = Row(fault, times, submitted=times * jobs_each, may_call_twice=may_call_twice)
    began_at, struck_at = time.monotonic(), []
    group = world.queue.submit_many({"model": MODEL, "messages": MESSAGES} for _ in range(row.submitted))
    with _watched_leases(world) as overdue_s:
        for number in range(times):
            # Spread over the run: each strikes when its share of the jobs has ended.
            wanted = (number + random.random() * 0.8) / times * row.submitted
            _wait_ended(world, group.id, wanted)
            struck_at.append(time.time())
            strike()
        if times:
            wait_until(lambda: _ended(world, group.id) >= row.submitted, "all end", timeout_s=PATIENCE_S)
            _judge(world, row, [job.id for job in group.jobs()], list(group.as_completed()), struck_at)
    if may_call_twice and overdue_s:
        row.noticed_s = max(row.noticed_s, LEASE_S + max(overdue_s))
    row.wall_s = time.monotonic() - began_at
    _print_row(row.fault, [row])
    return row


@contextlib.contextmanager
def _watched_leases(world: World) -> Iterator[list[float]]:
    """By how many seconds leases outlive their end, by Redis's clock, looked at ten times a second."""
    found: list[float] = []
    is_over = threading.Event()

    def look() -> None:
        with world.server.client() as client:
            while not is_over.wait(0.1):
                with contextlib.suppress(redis.RedisError):  # killed, just now
                    seconds, micros = client.time()
                    now_ms = seconds * 1_000 + micros / 1_000
                    ended = client.zrange(redis_keys.LEASES, 0, 0, withscores=True)
                    found.extend((now_ms - end_ms) / 1_000 for _, end_ms in ended if end_ms < now_ms)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield found
    finally:
        is_over.set()
        looker.join()


def _wait_ended(world: World, group_id: str, count: float) -> None:
    wait_until(lambda: _ended(world, group_id) >= count, f"{count:.0f} have ended", timeout_s=PATIENCE_S)


def _ended(world: World, group_id: str) -> int:
    return world.queue.group(group_id).progress().ended


def _judge(world: World, row: Row, ids: list[str], results: list[PromptResult], struck_at: list[float]) -> None:
    calls: dict[str, list[float]] = {job_id: [] for job_id in ids}
    for call in world.providers.ledger(MODEL):
        if call["job_id"] in calls:
            calls[call["job_id"]].append(call["time"])
    flagged = {result.id for result in results if result.suspected_double_payment}
    row.ended = len({result.id for result in results})
    row.lost = len(set(ids) - {result.id for result in results}) + (len(results) - row.ended)
    row.failed = sum(not result.ok for result in results)
    row.calls = sum(map(len, calls.values()))
    twice = {job_id for job_id, times in calls.items() if len(times) > 1}
    row.above_one = row.calls - len(ids)
    row.flagged = len(flagged)
    row.unflagged = len(twice - flagged)
    for job_id in twice:
        # A call takes a third of a second, so what interrupted it is the first strike after it began. Whoever has the
        # job when its lease is over may be struck too, before it calls; the leases tell whether it was over in time.
        first, again, *_ = calls[job_id]
        death = min((at for at in struck_at if at >= first), default=first)
        last = max((at for at in struck_at if death + LEASE_S <= at <= again), default=death)
        row.noticed_s = max(row.noticed_s, again - last)


def _take_windows(world: World, fleet: Fleet, times: int) -> Row:
    """All workers idle and frozen; one job each time; then the workers are killed and others started."""
    row = Row("kill in the take window", times, submitted=times)
    began_at = time.monotonic()
    jobs = []
    for number in range(times):
        for worker in fleet.workers:
            worker.signal(signal.SIGSTOP)
        jobs += world.submit(1, model=MODEL)
        fleet.kill(number % len(fleet.workers))
        for worker in fleet.workers:
            worker.signal(signal.SIGCONT)
    _judge(world, row, [job.id for job in jobs], world.results(jobs), [])
    row.wall_s = time.monotonic() - began_at
    _print_row(row.fault, [row])
    return row


_COLUMNS = ("times", "submitted", "ended", "lost", "failed", "calls", "above_one", "flagged", "unflagged")
_HEADER = f"{'fault':<24}" + "".join(f"{name:>10}" for name in (*_COLUMNS, "noticed_s", "wall_s", "kept"))


def _print_row(title: str, rows: list[Row]) -> None:
    counts = "".join(f"{sum(getattr(row, name) for row in rows):>10}" for name in _COLUMNS)
    noticed_s, wall_s = max(row.noticed_s for row in rows), sum(row.wall_s for row in rows)
    kept = "yes" if all(row.promise_kept for row in rows) else "NO"
    print(f"{title:<24}{counts}{noticed_s:>10.1f}{wall_s:>10.1f}{kept:>10}", flush=True)
