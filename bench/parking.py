"""`parking`: a model whose limit is used up must not hold up another in the same workers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table

from tasks import PromptQueue

from .contestants import WARM_UP_FIRST, finish, scratch
from .fleet import Fleet, Shape, running_fleet
from .processes import clean_environ
from .provider import Provider, running_provider
from .redis_server import RedisServer, running_redis
from .report import Report, Verdict
from .workload import bodies

__all__ = ["run"]

SHAPE = Shape(2, 50)
LATENCY_S = 0.3
SLOW, FREE = "slow", "free"
SLOW_RPM = 60
MOST_SLOWER = 1.3

Order = Literal["alone", "after the slow one", "before the slow one"]
ORDERS: tuple[Order, ...] = ("alone", "after the slow one", "before the slow one")


class _Sample(NamedTuple):
    """`wall_s`: from the first free job's submission to the last one's result. `refused`: 429s of the slow model."""

    wall_s: float
    refused: int


async def run(report: Report) -> None:
    """The free model's jobs alone, and with the slow one's in the queue before or behind them."""
    samples: dict[Order, list[_Sample]] = {order: [] for order in ORDERS}
    for number in range(report.plan.repeats):
        for order in ORDERS:
            report.say(f"parking, round {number + 1} of {report.plan.repeats}: {order}")
            samples[order].append(await _measure(report, order))
    _show(report, samples)


async def _measure(report: Report, order: Order) -> _Sample:
    """With fresh processes, so that nothing is parked yet."""
    plan = report.plan
    async with (
        scratch() as directory,
        running_provider(directory, latency_ms=LATENCY_S * 1000) as free,
        running_provider(directory, latency_ms=LATENCY_S * 1000, rpm=SLOW_RPM) as slow,
        running_redis(directory) as redis,
        _workers(free, slow, redis, directory) as fleet,
        PromptQueue(redis.url) as queue,
    ):
        await finish(await queue.submit_many(_jobs(FREE, SHAPE.places * 5, first=WARM_UP_FIRST)))
        if order == "after the slow one":
            await queue.submit_many(_jobs(SLOW, plan.parked_jobs))
        started_s = time.perf_counter()
        group = await queue.submit_many(_jobs(FREE, plan.free_jobs))
        if order == "before the slow one":
            await queue.submit_many(_jobs(SLOW, plan.parked_jobs))
        await finish(group)
        wall_s = time.perf_counter() - started_s
        fleet.check()
        return _Sample(wall_s, refused=await slow.refused())


@asynccontextmanager
async def _workers(free: Provider, slow: Provider, redis: RedisServer, directory: Path) -> AsyncIterator[Fleet]:
    catalogue = directory / "catalogue.toml"
    limits = f"limits = {{ rpm = {SLOW_RPM} }}"
    catalogue.write_text(f"{_entry(FREE, free)}\n{_entry(SLOW, slow)}{limits}\n")
    environ = clean_environ(PROMPTMILL_REDIS_URL=redis.url, PROMPTMILL_CATALOG=str(catalogue))
    async with running_fleet("workers", SHAPE, redis=redis, directory=directory, environ=environ) as fleet:
        yield fleet


def _entry(name: str, provider: Provider) -> str:
    address = json.dumps(provider.url)
    return f'[providers.{name}]\nbase_url = {address}\napi_keys = []\n\n[models.{name}]\nprovider = "{name}"\n'


def _jobs(model: str, count: int, *, first: int = 0) -> Iterator[dict[str, Any]]:
    return (request | {"model": model} for request in bodies(count, first=first))


def _show(report: Report, samples: dict[Order, list[_Sample]]) -> None:
    plan = report.plan
    jobs = f"{plan.free_jobs:,} jobs of an unlimited model, {plan.parked_jobs:,} of one with {SLOW_RPM} a minute"
    table = Table(title=f"{jobs}; medians", title_justify="left")
    table.add_column("the unlimited model's jobs")
    for name in ("s", "x alone", "429s of the other"):
        table.add_column(name, justify="right")
    ratios = {order: _ratio(samples[order], samples["alone"]) for order in ORDERS}
    for order, ratio in ratios.items():
        wall_s = statistics.median(sample.wall_s for sample in samples[order])
        table.add_row(order, f"{wall_s:.2f}", f"{ratio:.2f}", str(_refused(samples[order])))
    report.show(table)
    report.verdicts += [
        Verdict(f"parking: time {order}, x alone", ratios[order], at_most=MOST_SLOWER) for order in ORDERS[1:]
    ]
    report.verdicts.append(Verdict("parking: 429s", sum(map(_refused, samples.values())), at_most=0))
    report.figures["parking"] = {order: [sample._asdict() for sample in of_it] for order, of_it in samples.items()}


def _ratio(samples: Sequence[_Sample], alone: Sequence[_Sample]) -> float:
    """The median of each round's ratio."""
    return statistics.median(each.wall_s / base.wall_s for each, base in zip(samples, alone, strict=True))


def _refused(samples: Sequence[_Sample]) -> int:
    return sum(sample.refused for sample in samples)
