"""`run`: a big file through `promptmill run`, and what the command itself weighs."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from rich.table import Table

from .contestants import scratch
from .processes import Child, running
from .report import Report, Verdict
from .workload import bodies

__all__ = ["run"]

LOOK_S = 0.1
PROMPTMILL = "from workers.cli import main; main()"
"""The console script, of the checkout that is first on the path."""


async def run(report: Report) -> None:
    """So many rows against a provider that answers at once."""
    rows = report.plan.rows
    report.say(f"run: {rows:,} rows through `promptmill run --simulate`")
    async with scratch() as directory:
        await asyncio.to_thread(_write_rows, directory / "in.jsonl", rows)
        command = [sys.executable, "-P", "-c", PROMPTMILL, "run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--json"]
        command += ["--latency-ms", "0", "--jitter", "0"]
        async with running(command, log=directory / "run.log") as child:
            output, peak_bytes = await asyncio.gather(child.output(), _peak(child))
        summary = json.loads(output)
    table = Table(title=f"{rows:,} rows through `promptmill run`, 2 workers, 0 ms", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("rows a second", f"{summary['succeeded'] / summary['wall_s']:,.0f}")
    table.add_row("succeeded", f"{summary['succeeded']:,}")
    table.add_row("the command's peak memory, MB", f"{peak_bytes / 1e6:.0f}")
    report.show(table)
    report.verdicts.append(Verdict("memory of `promptmill run`, MB", peak_bytes / 1e6, at_most=200))
    report.verdicts.append(Verdict("rows that succeeded", summary["succeeded"], at_least=rows))
    report.figures["run"] = {"rows_per_s": summary["succeeded"] / summary["wall_s"], "peak_bytes": peak_bytes}


def _write_rows(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in bodies(rows))


async def _peak(child: Child) -> int:
    """The largest that the process has been seen."""
    peak_bytes = 0
    with suppress(psutil.NoSuchProcess):
        while not child.has_ended:
            peak_bytes = max(peak_bytes, child.rss_bytes())
            await asyncio.sleep(LOOK_S)
    return peak_bytes
