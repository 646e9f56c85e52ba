"""Mixed jobs under mixed faults: `make soak ARGS=chaos`, or `python -m tests.soak chaos --seeds 10`.

Each seed draws 6,000 jobs (own ids and none, groups, cancels, deadlines, delays, a limit, a faulty provider, stock
producers) and the moments of ten faults: kills of five workers and of Redis (AOF always), CLIENT KILLs, a freeze. Every
second seed has its Redis behind Sentinel, and failovers among the faults. What was promised stands in
tests/system/faults/chaos.py. Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from tests.support.redis_server import RedisServer
from tests.system.faults.chaos import Plan, Report, play
from tests.system.faults.harness import Providers, World

__all__ = ["add_options", "run"]

WORKERS = ("worker",) * 5
FAULTS = (*WORKERS, "Redis", "Redis", "cut", "cut", "freeze")
FAILOVERS = ("planned", "kill", "stop")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--jobs", type=int, default=6_000, help="for each seed")
    parser.add_argument("--rate", type=float, default=200.0, help="submitted a second")
    parser.add_argument("--redis", choices=("alone", "sentinel", "both"), default="both", help="both: by turns")


def run(options: argparse.Namespace) -> bool:
    """Whether every promise was kept."""
    broken = 0
    for seed in range(options.seed, options.seed + options.seeds):
        sentinel = options.redis == "sentinel" or (options.redis == "both" and seed % 2 == 1)
        report = _play(seed, sentinel=sentinel, options=options)
        print(f"seed {seed}, {'behind Sentinel' if sentinel else 'one Redis'}: {report}", flush=True)
        broken += len(report.broken)
    print(f"{broken} promises broken" if broken else "every promise was kept")
    return not broken


def _play(seed: int, *, sentinel: bool, options: argparse.Namespace) -> Report:
    with contextlib.ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="soak-chaos-")))
        providers = Providers(directory, {})
        recorder = RedisServer(directory / "recorder")
        closing.callback(recorder.close)
        faults: tuple[str, ...] = FAULTS
        if sentinel:
            faults = (*WORKERS, "cut", "freeze", f"failover: {FAILOVERS[seed // 2 % len(FAILOVERS)]}")
        plan = Plan.of(seed, jobs=options.jobs, rate_per_s=options.rate, faults=faults, stock=not sentinel)
        with World(directory, providers, recorder.url) as world:
            return play(world, plan, sentinel=sentinel)
