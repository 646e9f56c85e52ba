"""The command line of the benchmarks."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from . import articles, embeddings, enqueue, file_run, idle, jobs, latency, limiter, memory, paced, parking, streams
from .plan import QUICK, WHOLE
from .processes import BenchError
from .report import Report

__all__ = ["main"]

Benchmark = Callable[[Report], Coroutine[Any, Any, None]]

USUAL: dict[str, Benchmark] = {
    "jobs": jobs.run,
    "latency": latency.run,
    "enqueue": enqueue.run,
    "idle": idle.run,
    "memory": memory.run,
    "articles": articles.run,
    "limiter": limiter.run,
    "parking": parking.run,
    "paced": paced.run,
    "embeddings": embeddings.run,
    "streams": streams.run,
}
FILE_WIDTH = 132
"""Characters in a line where the output is no terminal."""

ALL: dict[str, Benchmark] = {**USUAL, "run": file_run.run}


def bench(  # noqa: PLR0917 - Typer makes an option of each; nobody calls it by position
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help=f"Of: {', '.join(ALL)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small and once: shows that all works, not how fast.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="The long ones too: `run`.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds of `jobs`; the medians are shown.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another checkout: `jobs` measures its workers in the same rounds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object on stdout.")] = False,
) -> None:
    """Measure Promptmill beside a bare asyncio loop and stock Celery, in the same run."""
    plan = QUICK if quick else WHOLE
    if repeats is not None:
        plan = replace(plan, repeats=repeats)
    report = Report(plan, _console(stderr=as_json), against.resolve() if against else None)
    try:
        uvloop.run(_run(_chosen(names or [], everything=everything), report))
    except BenchError as error:
        report.console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        raise typer.Exit(143) from None  # SIGTERM
    if as_json:
        typer.echo(json.dumps(report.figures))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def _chosen(names: list[str], *, everything: bool) -> dict[str, Benchmark]:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise typer.BadParameter(f"there is no benchmark {unknown[0]!r}; choose of {', '.join(ALL)}")
    if names:
        return {name: ALL[name] for name in names}
    return ALL if everything else USUAL


async def _run(chosen: dict[str, Benchmark], report: Report) -> None:
    _end_children_too()
    report.show_machine()
    started_s = time.monotonic()
    for benchmark in chosen.values():
        await benchmark(report)
    report.show_verdicts()
    report.say(f"{time.monotonic() - started_s:.0f} s in all")


def _end_children_too() -> None:
    """Have SIGTERM cancel the run, as Ctrl-C does: each process that was started is stopped on the way out."""
    this = asyncio.current_task()
    assert this is not None, "runs as a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)


def main() -> None:
    """`python -m bench`."""
    typer.run(bench)
