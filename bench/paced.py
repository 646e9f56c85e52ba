"""`paced`: the main job against a provider with a limit, beside the least time that the limit permits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .contestants import scratch
from .file_run import PROMPTMILL
from .processes import HERE, running
from .report import Report, Verdict

__all__ = ["run"]

QUESTIONS = HERE / "examples" / "gsm8k.jsonl"
RPM = 3_000
TPM = 200_000
MOST_OVER = 1.05
"""How much longer than the least time it may take."""

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limit:
    """What the provider permits, as options of `promptmill run`, and the least time (s) for what was sent."""

    name: str
    options: tuple[str, ...]
    least_s: Callable[[Summary], float]


LIMITS = (
    Limit(
        f"{RPM:,} requests a minute, fixed windows",
        ("--rpm", str(RPM), "--algorithm", "fixed"),
        lambda summary: summary["submitted"] / (RPM / 60),
    ),
    Limit(
        f"{TPM:,} tokens a minute, bucket",
        ("--tpm", str(TPM), "--algorithm", "bucket"),
        lambda summary: (summary["input_tokens"] + summary["output_tokens"]) / (TPM / 60),
    ),
)


async def run(report: Report) -> None:
    """`promptmill run` over the questions, two workers, once for each limit."""
    rows = report.plan.questions
    table = Table(title=f"{rows:,} questions of GSM8K through `promptmill run`", title_justify="left")
    table.add_column("limit")
    for name in ("succeeded", "calls", "429s", "time, s", "at the permitted rate, s"):
        table.add_column(name, justify="right")
    for limit in LIMITS:
        report.say(f"paced: {rows:,} questions at {limit.name}")
        summary = await _summary(rows, limit.options)
        least_s = limit.least_s(summary)
        counts = (f"{summary[name]:,}" for name in ("succeeded", "provider_calls", "rate_limited"))
        table.add_row(limit.name, *counts, f"{summary['wall_s']:.2f}", f"{least_s:.2f}")
        report.verdicts += [
            Verdict(f"{limit.name}: questions that succeeded", summary["succeeded"], at_least=rows),
            Verdict(f"{limit.name}: 429s", summary["rate_limited"], at_most=0),
            Verdict(f"{limit.name}: time, x the least", summary["wall_s"] / least_s, at_most=MOST_OVER),
        ]
        report.figures.setdefault("paced", []).append({"limit": limit.name, "least_s": least_s, **summary})
    report.show(table)


async def _summary(rows: int, options: tuple[str, ...]) -> Summary:
    command = [sys.executable, "-P", "-c", PROMPTMILL, "run", str(QUESTIONS), "-o", "out.jsonl", "--json", "--simulate"]
    command += ["--limit", str(rows), *options]
    async with scratch() as directory, running(command, log=directory / "run.log") as child:
        summary: Summary = json.loads(await child.output())
    return summary
