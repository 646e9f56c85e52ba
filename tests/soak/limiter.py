"""The limiter's long run: `make soak ARGS=limiter`, or `python -m tests.soak limiter --row-s 30`.

Four real workers share two limits, of requests for one model and of tokens for another. Their provider is strict: it
counts sliding windows of a minute to the instant, so a request too many anywhere is a 429. One kind of fault after
another strikes. The judge is the provider's ledger: what it admitted, in every window of 60 s that ends in the
fault's row. Prints a table row by row; exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.system.faults.fleet import Fleet
from tests.system.faults.harness import Providers, World
from tests.workers.limiter.ledger import Ledger

__all__ = ["add_options", "run"]

WINDOW_S = 60.0
WARM_UP_S = 5.0
FIRST_ROW_S = 65.0
"""Without a fault: long enough for whole windows."""

AOF_ALWAYS = ("appendonly yes", "appendfsync always")
WORKERS, CONCURRENCY = 4, 50
LATENCIES_MS = {"by-requests": 300.0, "by-tokens": 1_000.0}


@dataclass(frozen=True)
class Limit:
    """One model's limit, and how much of it must be used where nothing is the matter."""

    model: str
    a_minute: int
    least_used: float
    amount: Callable[[dict[str, Any]], int]

    def lost_s(self, granted: float, time_s: float) -> float:
        """Seconds of capacity that were not used."""
        return time_s - granted / (self.a_minute / WINDOW_S)


REQUESTS = Limit("by-requests", 3_000, 0.975, lambda call: 1)
TOKENS = Limit("by-tokens", 200_000, 0.95, lambda call: call["prompt_tokens"] + call["completion_tokens"])
LIMITS = (REQUESTS, TOKENS)
OPTIONS = {
    "by-requests": ("--rpm", "3000", "--algorithm", "sliding", "--jitter", "0.2"),
    "by-tokens": ("--tpm", "200000", "--algorithm", "sliding", "--jitter", "0.5", "--output-tokens", "500"),
}
CATALOGUE = {
    "by-requests": '{ rpm = 3000, algorithm = "sliding" }',
    "by-tokens": '{ tpm = 200000, algorithm = "sliding" }',
}
REQUESTS_TO_ONE_OF_TOKENS = 6
"""About 50 and 7 a second are permitted; a little more of the second, so that both always have jobs waiting."""


@dataclass(frozen=True)
class Fault:
    """What strikes, how often in its row, and how much capacity one strike may cost."""

    name: str
    strike: Callable[[], None]
    times: int
    may_lose_s: float


@dataclass
class Row:
    """A fault's time, from its first strike to the next fault's. Epoch seconds."""

    fault: Fault
    began_at: float
    ended_at: float

    @property
    def time_s(self) -> float:
        return self.ended_at - self.began_at

    def has(self, at: float) -> bool:
        return self.began_at <= at < self.ended_at


@dataclass
class Finding:
    """What a row has shown of one limit."""

    limit: Limit
    row: Row
    granted: int
    most: float
    refused: int

    @property
    def lost_s(self) -> float:
        return self.limit.lost_s(self.granted, self.row.time_s)

    @property
    def kept(self) -> bool:
        fault = self.row.fault
        usual_s = (1 - self.limit.least_used) * self.row.time_s
        in_time = self.lost_s <= usual_s + fault.times * fault.may_lose_s
        return in_time and not self.refused and self.most <= self.limit.a_minute


class Load:
    """Jobs for both models in one queue, each prompt different, because the answer's length follows from it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0

    def fill(self, time_s: float) -> None:
        """As many as both limits let through in that time, and more."""
        rounds = int(REQUESTS.a_minute / WINDOW_S * time_s * 1.2) // REQUESTS_TO_ONE_OF_TOKENS
        self._world.queue.submit_many(body for _ in range(rounds) for body in self._round())

    def _round(self) -> Iterator[dict[str, Any]]:
        for model in [REQUESTS.model] * REQUESTS_TO_ONE_OF_TOKENS + [TOKENS.model]:
            self._number += 1
            yield {"model": model, "messages": [{"role": "user", "content": f"How much is 6 times {self._number}?"}]}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--row-s", type=float, default=55.0, help="how long each fault is watched")
    parser.add_argument("--only", default="", help="only faults whose name contains this, after the row without")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> bool:
    """Whether every promise was kept."""
    random.seed(options.seed)
    with contextlib.ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="soak-limiter-")))
        providers = Providers(directory, LATENCIES_MS, options=OPTIONS, limits=CATALOGUE)
        closing.callback(providers.close)
        recorder = RedisServer(directory / "recorder")
        closing.callback(recorder.close)
        with World(directory, providers, recorder.url) as world:
            return _play(world, options)


def _play(world: World, options: argparse.Namespace) -> bool:
    world.start_redis(*AOF_ALWAYS)
    fleet = Fleet(world, size=WORKERS, concurrency=CONCURRENCY)
    load = Load(world)
    faults = [fault for fault in _faults(world, fleet, load, options) if not fault.times or options.only in fault.name]
    load.fill(FIRST_ROW_S + WARM_UP_S + len(faults) * options.row_s)
    wait_until(lambda: world.providers.ledger(TOKENS.model), "the first call arrives")
    time.sleep(WARM_UP_S)  # the limit begins empty: what is watched begins later
    print(_HEADER, flush=True)
    rows = []
    for fault in faults:
        rows.append(_watch(fault, options.row_s if fault.times else FIRST_ROW_S))
        _print_row(rows[-1], _findings(world, rows[-1:]))
    # Read once more: a row's last calls may have been under way when it was printed.
    findings = _findings(world, rows)
    _print_all(rows, findings)
    return all(finding.kept for finding in findings)


def _faults(world: World, fleet: Fleet, load: Load, options: argparse.Namespace) -> list[Fault]:
    def kill() -> None:
        fleet.kill(random.randrange(WORKERS))

    def freeze() -> None:
        fleet.freeze(random.randrange(WORKERS), 4.0)

    def crash(*, away_s: float = 2.0) -> None:
        world.server.kill()
        time.sleep(away_s)  # the fault itself: nothing is waited for
        world.server.start()

    def lose() -> None:
        world.server.kill()
        for left in (world.directory / "redis").glob("appendonly*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        world.server.start()
        load.fill(options.row_s)

    def wipe() -> None:
        world.redis.flushall()
        load.fill(options.row_s)

    return [
        Fault("nothing", lambda: None, 0, 0.0),
        Fault("worker kill -9", kill, 2, 3.0),
        Fault("SIGSTOP 4 s, SIGCONT", freeze, 2, 4.0),
        Fault("SCRIPT FLUSH", world.redis.script_flush, 3, 1.0),
        Fault("pub/sub cut", lambda: world.redis.client_kill_filter(_type="pubsub", skipme=True), 3, 1.0),
        Fault("Redis kill -9, 2 s", crash, 2, 4.0),
        Fault("FLUSHALL", wipe, 2, 6.0),
        Fault("Redis kill -9, emptied", lose, 2, 8.0),
    ]


def _watch(fault: Fault, time_s: float) -> Row:
    began_at = time.time()
    for number in range(fault.times):
        # All strikes in the first half, so that the windows of the second hold what they have done.
        time.sleep(max(0.0, began_at + number * time_s / 2 / fault.times - time.time()))
        fault.strike()
    time.sleep(max(0.0, began_at + time_s - time.time()))
    return Row(fault, began_at, time.time())


def _findings(world: World, rows: Sequence[Row]) -> list[Finding]:
    return [finding for limit in LIMITS for finding in _of_limit(limit, rows, world.providers.ledger(limit.model))]


def _of_limit(limit: Limit, rows: Sequence[Row], calls: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    admitted = Ledger([(call["time"], limit.amount(call)) for call in calls if not call["rate_limited"]])
    windows = list(admitted.windows(WINDOW_S))
    for row in rows:
        yield Finding(
            limit,
            row,
            granted=int(sum(amount for at, amount in admitted.entries if row.has(at))),
            most=max((sum_ for at, sum_ in windows if row.has(at)), default=0.0),
            refused=sum(call["rate_limited"] for call in calls if row.has(call["time"])),
        )


_COLUMNS = ("granted", "most/60s", "of limit", "429s", "lost_s")
_HEADER = (
    f"{'':<24}{'':>6}{REQUESTS.a_minute:>20,} requests a minute{'':>12}{TOKENS.a_minute:>15,} tokens a minute\n"
    f"{'fault':<24}{'times':>6}" + "".join(f"{name:>10}" for name in _COLUMNS * len(LIMITS)) + f"{'kept':>7}"
)


def _print_row(row: Row, findings: Sequence[Finding]) -> None:
    cells = "".join(
        f"{each.granted:>10,}{each.most:>10,.0f}{each.most / each.limit.a_minute:>10.1%}{each.refused:>10}"
        f"{each.lost_s:>10.1f}"
        for each in findings
    )
    kept = "yes" if all(each.kept for each in findings) else "NO"
    print(f"{row.fault.name:<24}{row.fault.times:>6}{cells}{kept:>7}", flush=True)


def _print_all(rows: Sequence[Row], findings: Sequence[Finding]) -> None:
    cells = ""
    for limit in LIMITS:
        of_it = [finding for finding in findings if finding.limit is limit]
        most = max(finding.most for finding in of_it)
        cells += f"{sum(finding.granted for finding in of_it):>10,}{most:>10,.0f}{most / limit.a_minute:>10.1%}"
        cells += f"{sum(finding.refused for finding in of_it):>10}{sum(finding.lost_s for finding in of_it):>10.1f}"
    kept = "yes" if all(finding.kept for finding in findings) else "NO"
    print(f"{'ALL':<24}{sum(row.fault.times for row in rows):>6}{cells}{kept:>7}", flush=True)
