"""`jobs`: many prompts through ours, a bare loop and stock Celery, side by side."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.table import Table

from .contestants import bare, ours, scratch, stock
from .fleet import Shape
from .provider import running_provider
from .report import Report, Verdict
from .samples import Sample, median, spread

__all__ = ["run"]

LATENCY_S = 0.2

Measure = Callable[..., Coroutine[Any, Any, Sample]]
"""Takes `provider` and `latency_s`."""

Row = tuple[str, Shape]

ONE, TWO, FEW = Shape(1, 500), Shape(2, 250), Shape(1, 50)
EVENTS = Shape(1, 500, events=True)

OURS, BARE, STOCK = "Promptmill", "bare asyncio + aiohttp", "Celery, threads + one loop"


@dataclass(frozen=True, slots=True)
class Results:
    """Samples of each row; the n-th sample of every row was taken in the same round."""

    of: dict[Row, list[Sample]]

    def ratio(self, row: Row, to: Row) -> float:
        """How much more worker CPU a job costs: the median of each round's ratio."""
        pairs = zip(self.of[row], self.of[to], strict=True)
        return statistics.median(sample.cpu_us / base.cpu_us for sample, base in pairs)

    def ratio_to_bare(self, row: Row) -> float:
        return self.ratio(row, (BARE, replace(row[1], events=False)))


async def run(report: Report) -> None:
    """Measure all rows in turn, as many rounds as the plan says: what disturbs the machine disturbs them all."""
    samples: dict[Row, list[Sample]] = defaultdict(list)
    async with scratch() as directory, running_provider(directory, latency_ms=LATENCY_S * 1000) as provider:
        for number in range(report.plan.repeats):
            for row, measure in _rows(report).items():
                report.say(f"jobs, round {number + 1} of {report.plan.repeats}: {row[0]}, {row[1]}")
                samples[row].append(await measure(provider=provider, latency_s=LATENCY_S))
    results = Results(samples)
    report.show(_table(results))
    report.verdicts += _verdicts(results)
    report.figures["jobs"] = [_figures(row, results) for row in samples]


def _rows(report: Report) -> dict[Row, Measure]:
    plan = report.plan
    rows: dict[Row, Measure] = {}
    for shape in (ONE, TWO, FEW):
        jobs = plan.few_in_flight_jobs if shape is FEW else plan.jobs
        rows[BARE, shape] = partial(bare, shape, jobs)
        rows[OURS, shape] = partial(ours, shape, jobs)
    rows[OURS, EVENTS] = partial(ours, EVENTS, plan.jobs)
    for shape in (ONE, EVENTS):
        rows[STOCK, shape] = partial(stock, shape, plan.stock_jobs)
    if report.against is not None:
        rows[str(report.against), ONE] = partial(ours, ONE, plan.jobs, tree=report.against)
    return rows


def _table(results: Results) -> Table:
    table = Table(title="Prompts of about 400 characters, 200 ms each; medians", title_justify="left")
    table.add_column("")
    table.add_column("workers")
    for name in (
        "jobs",
        "jobs/s",
        "ideal",
        "CPU us/job",
        "+-",
        "x bare",
        "trips/job",
        "Redis us/job",
        "peak",
        "RSS MB",
    ):
        table.add_column(name, justify="right")
    for row, samples in results.of.items():
        table.add_row(row[0], str(row[1]), *_cells(row, samples, results))
    return table


def _cells(row: Row, samples: list[Sample], results: Results) -> list[str]:
    first = samples[0]
    has_redis = first.round_trips is not None
    return [
        f"{first.jobs:,}",
        f"{median(samples, lambda sample: sample.jobs_per_s):,.0f}",
        f"{first.ideal_per_s:,.0f}",
        f"{median(samples, lambda sample: sample.cpu_us):,.0f}",
        f"{spread(samples, lambda sample: sample.cpu_us):.0%}",
        f"{results.ratio_to_bare(row):.2f}",
        f"{median(samples, lambda sample: sample.trips):.3f}" if has_redis else "",
        f"{median(samples, lambda sample: sample.redis_cpu_us):.0f}" if has_redis else "",
        f"{median(samples, lambda sample: sample.peak_in_flight):,.0f}",
        f"{median(samples, lambda sample: sample.rss_mb):,.0f}",
    ]


def _figures(row: Row, results: Results) -> dict[str, Any]:
    samples = results.of[row]
    return {
        "who": row[0],
        "shape": str(row[1]),
        "jobs": samples[0].jobs,
        "x_bare": results.ratio_to_bare(row),
        **{
            name: [getattr(sample, name) for sample in samples]
            for name in ("jobs_per_s", "cpu_us", "trips", "redis_cpu_us", "peak_in_flight", "rss_mb")
        },
    }


def _verdicts(results: Results) -> list[Verdict]:
    """The limits of the project, for 500 in flight in one process."""
    row = (OURS, ONE)
    samples = results.of[row]
    return [
        Verdict("worker CPU per job, us", median(samples, lambda sample: sample.cpu_us), at_most=600),
        Verdict("worker CPU per job, x bare", results.ratio_to_bare(row), at_most=2.5),
        Verdict("stock pool's worker CPU, x ours", results.ratio((STOCK, ONE), row), at_least=4.5),
        Verdict(
            "stock pool's worker CPU, x ours, events", results.ratio((STOCK, EVENTS), (OURS, EVENTS)), at_least=4.5
        ),
        Verdict("Redis round trips per job", median(samples, lambda sample: sample.trips), at_most=0.2),
        Verdict("Redis CPU per job, us", median(samples, lambda sample: sample.redis_cpu_us), at_most=80),
        Verdict("peak in flight of 500", median(samples, lambda sample: sample.peak_in_flight), at_least=490),
    ]
