"""The command line: `promptmill`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from .commands.cache import cache
from .commands.dead import dead
from .commands.doctor import doctor
from .commands.jobs import cancel, status
from .commands.limits import limits
from .commands.metrics.command import metrics
from .commands.run.command import run
from .simulator.command import simulate

__all__ = ["main"]

# A traceback of ours must not show locals: they hold prompts.
app = typer.Typer(
    name="promptmill",
    help="A distributed queue for LLM prompts, on Celery and Redis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Workers: celery -A workers worker",
)
for command in (run, simulate, doctor, limits, metrics, status, cancel):
    app.command()(command)
app.add_typer(dead, name="dead")
app.add_typer(cache, name="cache")


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
