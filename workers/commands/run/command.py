"""The command `promptmill run`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from config.settings import Settings
from tasks.wire.options import MAX_REPAIRS
from workers.simulator.dialects import DialectName
from workers.simulator.limits import Algorithm
from workers.simulator.options import SimulatorOptions

from ..common import JsonOption, settings_or_fail
from ..failing import fail
from .errors import RunError, UnusableInput
from .options import RunOptions
from .output.summary import Outcome, next_step, summary_numbers, summary_table
from .processes.simulation import Simulation
from .session import Session

__all__ = ["run"]

DEFAULT = SimulatorOptions()


def _simulated(text: str, default: object) -> Any:
    return typer.Option(help=f"{text} Default: {default}.", show_default=False, rich_help_panel="With --simulate")


def run(  # noqa: PLR0917 - Typer makes an option of each; nobody calls it by position
    input_file: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT.jsonl",
            help="One JSON object a line: an OpenAI batch line, a request body, or anything with a prompt in it.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUTPUT.jsonl", help="Answers; a run continues where it ends.")
    ],
    model: Annotated[
        str | None, typer.Option(help="The model for all rows. Without: the row's own, else gpt-4o-mini.")
    ] = None,
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field with the prompt, for rows that are no requests.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema that the chats' answers have to fit.")
    ] = None,
    repair: Annotated[
        int, typer.Option(min=0, max=MAX_REPAIRS, help="Further calls for an answer that does not fit its schema.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes to start; 0 = use those that run already.")] = 2,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time in each process. [default: the setting's, 100]")
    ] = None,
    redis: Annotated[
        str | None, typer.Option(metavar="URL", help="A running Redis. Without: one of the run's own.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server in place of the catalogue; --model is its own."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --base-url: the variable that holds its key. Without: no key is sent."),
    ] = None,
    as_json: JsonOption = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Send everything to a simulated provider: no key, no cost.")
    ] = False,
    dialect: Annotated[DialectName | None, _simulated("Whose wire it speaks.", DEFAULT.dialect)] = None,
    latency_ms: Annotated[float | None, _simulated("Mean time to an answer.", DEFAULT.latency_ms)] = None,
    jitter: Annotated[float | None, _simulated("Its spread, as a share of the mean.", DEFAULT.jitter)] = None,
    rpm: Annotated[int | None, _simulated("Requests a minute.", "unlimited")] = None,
    tpm: Annotated[int | None, _simulated("Tokens a minute.", "unlimited")] = None,
    algorithm: Annotated[Algorithm | None, _simulated("How it counts.", DEFAULT.algorithm)] = None,
    burst: Annotated[int | None, _simulated("Requests that the bucket holds.", "one second's worth")] = None,
    fault: Annotated[list[str] | None, _simulated("A fault and its share of calls; repeatable.", "none")] = None,
    seed: Annotated[int | None, _simulated("The same seed repeats the same run.", DEFAULT.seed)] = None,
) -> None:
    """Send every row of a file through the queue and write one row of output for each.

    Run it again with the same output and it continues: rows with an answer are not sent again, failed ones are.

    Exit code: 0 all succeeded, 1 some failed, 2 bad usage or bad rows, 130 interrupted.
    """
    simulation = Simulation(
        dialect=dialect,
        latency_ms=latency_ms,
        jitter=jitter,
        rpm=rpm,
        tpm=tpm,
        algorithm=algorithm,
        burst=burst,
        faults=tuple(fault or ()),
        seed=seed,
    )
    console = Console(stderr=True)
    try:
        options = RunOptions(
            input=input_file,
            output=output.resolve(),
            model=model,
            field=field,
            schema=schema,
            repair=repair,
            limit=limit,
            workers=workers,
            concurrency=concurrency,
            redis=redis,
            simulation=_asked_for(simulation, simulate=simulate),
            base_url=base_url,
            api_key_env=api_key_env,
        )
        outcome = _finished(options, console)
    except RunError as error:
        fail(f"{error}\n{error.next_step}".strip(), exit_code=error.exit_code)
    _show(outcome, options, console, as_json=as_json)
    raise typer.Exit(outcome.exit_code)


def _asked_for(simulation: Simulation, *, simulate: bool) -> Simulation | None:
    if not simulate and simulation != Simulation():
        names = [*simulation.given(), *(["fault"] if simulation.faults else [])]
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UnusableInput(f"{options}: only a simulated provider takes this. Add --simulate.")
    return simulation if simulate else None


def _finished(options: RunOptions, console: Console) -> Outcome:
    settings = settings_or_fail()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_session(options, settings, console))


async def _session(options: RunOptions, settings: Settings, console: Console) -> Outcome:
    return await Session(options, settings=settings, console=console).run()


def _show(outcome: Outcome, options: RunOptions, console: Console, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary_numbers(outcome)))
    else:
        Console(highlight=False).print(summary_table(outcome))
    if advice := next_step(outcome, output=options.output, arguments=sys.argv[1:]):
        console.print(advice, markup=False, highlight=False, soft_wrap=True)
