"""The one way in which a command fails."""

from __future__ import annotations

from typing import NoReturn

import typer

from ..telemetry.terminal import printable_lines

__all__ = ["fail"]


def fail(text: str, *, exit_code: int = 2) -> NoReturn:
    """End the command with an error on stderr. The text says what is wrong and what to do next.

    Exit code 2 means that the command could not do what it was asked to, 1 that it did and found a failure.
    """
    typer.secho(f"Error: {printable_lines(text)}", fg=typer.colors.RED, err=True)
    raise typer.Exit(exit_code)
