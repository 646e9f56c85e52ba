"""The command line: `promptmill`. The command that is called is imported, and no other: each needs much of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: the module under `workers.commands` with a function, or a Typer app, of its name, and its help.

    The help is the first paragraph of what `promptmill NAME --help` says, for the list of all commands.
    """

    module: str
    help: str


COMMANDS: Final = {
    "run": Entry("run.command", "Send every row of a file through the queue and write one row of output for each."),
    "simulate": Entry(
        "simulate",
        "Serve a provider that answers, limits and fails as told, and costs nothing: OpenAI, or another by --dialect.",
    ),
    "doctor": Entry(
        "doctor", "Check Redis, the file limit, Flower, the catalogue, and each provider's keys and models."
    ),
    "limits": Entry(
        "limits",
        "Show what is permitted and used, who waits and how long, for each model and key, and which providers are out.",
    ),
    "metrics": Entry(
        "metrics.command", "Serve the queue's and the limiters' figures to Prometheus, for a whole deployment."
    ),
    "status": Entry("jobs", "Show how a job, or a group of jobs, stands. Exit code 1: unknown."),
    "cancel": Entry(
        "jobs",
        "Cancel a job, or all jobs of a group: queued, waiting or running. Exit code 1: there was nothing to cancel.",
    ),
    "dead": Entry("dead", "Messages that no worker could do: list, show, retry, purge."),
    "cache": Entry("cache", "Answers that serve equal prompts: stats, clear."),
}


class Commands(TyperGroup):
    """Lists commands from the table, and imports the one that is to be run, or completed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command as the list shows it: without what it does."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else TyperCommand(cmd_name, help=entry.help)

    def resolve_command(self, ctx: Any, args: Sequence[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, list(args))
        return name, name and command and load(name), rest


def load(name: str) -> Any:
    """The whole command."""
    found = getattr(import_module(f"{__package__}.commands.{COMMANDS[name].module}"), name)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
    return typer.main.get_command(alone)


# A traceback of ours must not show locals: they hold prompts.
app = typer.Typer(
    name="promptmill",
    cls=Commands,
    help="A distributed queue for LLM prompts, on Celery and Redis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Workers: celery -A workers worker",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"promptmill {version('promptmill')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something unexpected fails.")] = False,
) -> None:
    """Both act elsewhere: `--version` in its callback, `--debug` in `main`, which has to know it in any case."""


def main() -> None:
    """Run the command line; what nobody expected becomes one line and exit code 1."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        # Its type alone: a text that nobody has thought of may quote a prompt.
        typer.echo(
            f"Error: promptmill failed unexpectedly ({type(error).__name__}). Please report it, with what "
            "`promptmill --debug` and the same arguments print.",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
