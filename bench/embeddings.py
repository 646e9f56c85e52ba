"""`embeddings`: texts as single jobs, and how few calls and how much of a limit they take."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from rich.table import Table

from tasks import PromptQueue
from tasks.jobs import Group
from workers.simulator.answers.replies import vector_of

from .contestants import STALL_S, scratch
from .fleet import Shape, running_fleet
from .processes import BenchError, clean_environ
from .provider import Provider, running_provider
from .redis_server import running_redis
from .report import Report, Verdict

__all__ = ["run", "ten_in_one"]

MODEL = "bench-embedding"
POISON = "POISON"
ONE_POISON_IN = 10_000
MAX_INPUTS = 256
DIMENSIONS = 64
LATENCY_MS = 200
FLEET = Shape(4, 2_048)
MOST_CALLS = 1.02
"""Times the least number."""
MOST_FURTHER_CALLS = 16
"""For each poison input."""

TPM = 1_500_000
LEAST_USED = 0.98
ALONE_MS = 1.0
"""How much later the answer to a text alone may come than without packing."""
SINGLES = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run. `wrong`: vectors that are not those of their text. `used`: of the tokens a minute."""

    texts: int
    failed: int
    wrong: int
    wall_s: float
    calls: int
    tokens: int
    rate_limited: int
    refused: int
    cpu_s: float

    @property
    def least_calls(self) -> int:
        return -(-self.texts // MAX_INPUTS)


async def run(report: Report) -> None:
    """Texts of 20 to 400 characters as single jobs, 4 workers with 2,048 places each."""
    plan = report.plan
    report.say(f"embeddings: {plan.texts:,} texts as single jobs")
    async with scratch() as directory:
        free = await _bulk(directory, plan.texts)
    report.say(f"embeddings: {plan.texts:,} texts, one in {ONE_POISON_IN:,} poisoned")
    async with scratch() as directory:
        poisoned = await _bulk(directory, plan.texts, has_poison=True)
    report.say(f"embeddings: {TPM:,} tokens a minute")
    async with scratch() as directory:
        limited = await _bulk(directory, min(plan.texts, 2 * TPM // 53), tpm=TPM)
    report.say("embeddings: a text alone")
    async with scratch() as directory:
        packed_ms, apart_ms = await _alone(directory)
    rows = [("no limit", free), ("poison", poisoned), (f"{TPM:,} tokens a minute", limited)]
    report.show(_table(rows))
    poisons = -(-plan.texts // ONE_POISON_IN)
    used = limited.tokens / (TPM / 60 * limited.wall_s)
    report.verdicts += [
        Verdict("embeddings: calls, x the least", free.calls / free.least_calls, at_most=MOST_CALLS),
        Verdict("embeddings: wrong vectors", sum(each.wrong for _, each in rows), at_most=0),
        Verdict("embeddings: failed beside the poisoned", poisoned.failed - poisons, at_most=0),
        Verdict(
            "embeddings: further calls for a poison",
            (poisoned.calls - free.calls) / poisons,
            at_most=MOST_FURTHER_CALLS,
        ),
        Verdict("embeddings: share of the tokens used", used, at_least=LEAST_USED),
        Verdict("embeddings: 429s", limited.rate_limited, at_most=0),
        Verdict("embeddings: a text alone, ms later for packing", packed_ms - apart_ms, at_most=ALONE_MS),
    ]
    report.figures["embeddings"] = {
        **{name: vars_of(each) for name, each in rows},
        "share_of_tokens": used,
        "alone_ms": packed_ms,
        "alone_apart_ms": apart_ms,
    }


def vars_of(outcome: Outcome) -> dict[str, Any]:
    """As JSON."""
    return {name: getattr(outcome, name) for name in Outcome.__slots__}


def _table(rows: list[tuple[str, Outcome]]) -> Table:
    table = Table(title="Texts as single jobs, 4 workers x 2,048 places, 256 inputs a call", title_justify="left")
    table.add_column("")
    for name in ("texts", "failed", "calls", "least", "429s", "time, s", "texts a second", "worker CPU, us a text"):
        table.add_column(name, justify="right")
    for name, each in rows:
        table.add_row(
            name,
            f"{each.texts:,}",
            f"{each.failed:,}",
            f"{each.calls:,}",
            f"{each.least_calls:,}",
            f"{each.rate_limited:,}",
            f"{each.wall_s:.1f}",
            f"{each.texts / each.wall_s:,.0f}",
            f"{each.cpu_s / each.texts * 1e6:,.0f}",
        )
    return table


def _texts(count: int, *, has_poison: bool) -> Iterator[str]:
    rng = random.Random(1)
    for number in range(count):
        text = (f"{number} of many texts, " * 30)[: rng.randint(20, 400)]
        yield f"{number} {POISON}" if has_poison and number % ONE_POISON_IN == ONE_POISON_IN // 2 else text


async def _bulk(directory: Path, count: int, *, has_poison: bool = False, tpm: int | None = None) -> Outcome:
    options = ["--dimensions", str(DIMENSIONS), "--max-inputs", str(MAX_INPUTS), "--poison", POISON]
    options += [] if tpm is None else ["--tpm", str(tpm)]
    limits = "" if tpm is None else f'limits = {{ tpm = {tpm}, algorithm = "bucket" }}\n'
    async with (
        running_provider(directory, latency_ms=LATENCY_MS, options=options) as provider,
        _deployment(directory, provider, FLEET, limits) as (queue, fleet),
    ):
        with fleet.frozen():
            group = await queue.embed_many(_texts(count, has_poison=has_poison), model=MODEL)
        cpu_s = fleet.cpu_s()
        started_s = time.perf_counter()
        failed, wrong = await _read(group, has_poison=has_poison)
        wall_s = time.perf_counter() - started_s
        stats = await provider.stats()
        return Outcome(
            texts=count,
            failed=failed,
            wrong=wrong,
            wall_s=wall_s,
            calls=stats["calls"],
            tokens=stats["prompt_tokens"],
            rate_limited=stats["rate_limited"],
            refused=sum(n for status, n in stats["by_status"].items() if status != "200"),
            cpu_s=fleet.cpu_s() - cpu_s,
        )


async def _read(group: Group, *, has_poison: bool) -> tuple[int, int]:
    """How many failed, and how many vectors are wrong."""
    total = (await group.progress()).submitted
    texts = list(_texts(total, has_poison=has_poison))
    failed = wrong = 0
    try:
        async with asyncio.timeout(STALL_S) as stall:
            async for batch in group.completed_batches():
                stall.reschedule(asyncio.get_running_loop().time() + STALL_S)
                for result in batch:
                    text = texts[result.metadata["index"]]
                    if result.response is None:
                        failed += 1
                        wrong += POISON not in text
                    else:
                        wrong += result.response["data"][0]["embedding"] != _vector(text)
    except TimeoutError:
        raise BenchError(f"No text was embedded for {STALL_S:g} s.") from None
    return failed, wrong


def _vector(text: str) -> list[float]:
    digest = sha256(orjson.dumps(text, option=orjson.OPT_SORT_KEYS)).digest()
    vector: array[float] = vector_of(digest, seed=0, model=MODEL, dimensions=DIMENSIONS)
    return vector.tolist()


async def _alone(directory: Path) -> tuple[float, float]:
    """The medians (ms) of texts alone, one after another: as usual, and of mixed inputs, which are not packed."""
    async with (
        running_provider(directory, latency_ms=20, options=["--dimensions", str(DIMENSIONS)]) as provider,
        _deployment(directory, provider, Shape(1, 100), "") as (queue, _),
    ):
        took: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * SINGLES):
            is_packed = number % 2 == 0
            value: Any = [f"text {number}"] if is_packed else [f"text {number}", [1]]
            started_s = time.perf_counter()
            job = await queue.submit(model=MODEL, input=value)
            await job.result(timeout_s=30)
            took[is_packed].append((time.perf_counter() - started_s) * 1000)
    return statistics.median(took[True]), statistics.median(took[False])


async def ten_in_one(directory: Path, *, rounds: int) -> tuple[float, float]:
    """The medians (s) of ten texts in ten calls, one after another, and in one call."""
    async with (
        running_provider(directory, latency_ms=LATENCY_MS, options=["--dimensions", str(DIMENSIONS)]) as provider,
        _deployment(directory, provider, Shape(1, 100), "") as (queue, _),
    ):

        async def took_s(*inputs: list[str]) -> float:
            started_s = time.perf_counter()
            for each in inputs:
                result = await (await queue.submit(model=MODEL, input=each)).result(timeout_s=30)
                if len((result.response or {}).get("data", ())) != len(each):
                    raise BenchError("A text was not embedded.")
            return time.perf_counter() - started_s

        in_ten, in_one = [], []
        for number in range(rounds):
            texts = [f"text {number} {place}" for place in range(10)]
            in_ten.append(await took_s(*([text] for text in texts)))
            in_one.append(await took_s(texts))
    return statistics.median(in_ten), statistics.median(in_one)


@asynccontextmanager
async def _deployment(
    directory: Path, provider: Provider, shape: Shape, limits: str
) -> AsyncIterator[tuple[PromptQueue, Any]]:
    catalogue = directory / "catalogue.toml"
    catalogue.write_text(
        f"[providers.bench]\nbase_url = {json.dumps(provider.url)}\napi_keys = []\n\n"
        f'[models."{MODEL}"]\nprovider = "bench"\nmax_inputs = {MAX_INPUTS}\n{limits}'
    )
    async with running_redis(directory) as redis:
        environ = clean_environ(PROMPTMILL_REDIS_URL=redis.url, PROMPTMILL_CATALOG=str(catalogue))
        async with (
            running_fleet("workers", shape, redis=redis, directory=directory, environ=environ) as fleet,
            PromptQueue(redis.url) as queue,
        ):
            yield queue, fleet
