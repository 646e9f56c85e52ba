"""The master is replaced under load: `make soak ARGS=failover`, or `python -m tests.soak failover --jobs 3000`.

Each kind of failover, with and without `min-replicas-to-write 1`, strikes two real workers in the middle of their jobs,
which a client submits all the while. The simulated provider's ledger is the judge: every job that was accepted must
end, and every second call for one be flagged `suspected_double_payment`. Without `min-replicas`, unless its writes were
paused, what a master had confirmed that the others did not hear of may be lost; it is counted. Exit code 1 if a promise
was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from tests.support.redis_server import RedisServer
from tests.system.faults.failover import Row, strike
from tests.system.faults.harness import Providers, World
from tests.system.faults.replicated import KINDS

__all__ = ["add_options", "run"]

MODEL = "steady"
LATENCY_MS = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=3_000, help="for each failover")
    parser.add_argument("--only", default="", help="only kinds whose name contains this")
    parser.add_argument("--replicas", choices=("with", "without", "both"), default="both", help="min-replicas")
    parser.add_argument("--redis", type=Path, help="another redis-server than the usual one")


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
        + f"{row.flow_s:>11.2f}{row.wall_s:>11.1f}{kept:>11}"
        + "".join(f"\n  lost: {job_id}, {calls} calls" for job_id, calls in row.lost.items()),
        flush=True,
    )
