"""`paced`: the main job against a provider with a limit, beside the least time that the limit permits."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.table import Table

from .contestants import scratch
from .file_run import PROMPTMILL
from .processes import HERE, running
from .report import Report, Verdict

__all__ = ["run"]

QUESTIONS = HERE / "examples" / "gsm8k.jsonl"
RPM = 3_000
MOST_OVER = 1.05
"""How much longer than the least time it may take."""


async def run(report: Report) -> None:
    """`promptmill run` over the questions, two workers, windows of a minute."""
    rows = report.plan.questions
    report.say(f"paced: {rows:,} questions at {RPM:,} a minute")
    command = [sys.executable, "-P", "-c", PROMPTMILL, "run", str(QUESTIONS), "-o", "out.jsonl", "--json", "--simulate"]
    command += ["--limit", str(rows), "--rpm", str(RPM), "--algorithm", "fixed"]
    async with scratch() as directory, running(command, log=directory / "run.log") as child:
        summary: dict[str, Any] = json.loads(await child.output())
    least_s = rows / (RPM / 60)
    table = Table(title=f"{rows:,} questions of GSM8K through `promptmill run`, {RPM:,} rpm", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("succeeded", f"{summary['succeeded']:,}")
    table.add_row("429s", f"{summary['rate_limited']:,}")
    table.add_row("calls of the provider", f"{summary['provider_calls']:,}")
    table.add_row("time, s", f"{summary['wall_s']:.2f}")
    table.add_row("at the permitted rate, s", f"{least_s:.2f}")
    report.show(table)
    report.verdicts += [
        Verdict("paced: questions that succeeded", summary["succeeded"], at_least=rows),
        Verdict("paced: 429s", summary["rate_limited"], at_most=0),
        Verdict("paced: time, x the least that is permitted", summary["wall_s"] / least_s, at_most=MOST_OVER),
    ]
    report.figures["paced"] = {"least_s": least_s, **summary}
