"""How a command that serves says where: to people in a line, to the process that started it by a file descriptor."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .failing import fail

__all__ = ["ReadyFdOption", "check_ready_fd", "tell_ready"]

ReadyFdOption = Annotated[
    int | None,
    typer.Option("--ready-fd", metavar="FD", help="Write the URL to this file descriptor too, and close it."),
]


def check_ready_fd(ready_fd: int | None) -> None:
    """End the command if there is no such descriptor."""
    if ready_fd is not None and not _is_open(ready_fd):
        fail(f"--ready-fd: {ready_fd} is no open file descriptor. Let the process that starts this one hand it on.")


def tell_ready(url: str, ready_fd: int | None) -> None:
    """People read the line; a process that started this one reads its descriptor until it is closed."""
    typer.echo(f"listening on {url}")
    if ready_fd is not None:
        with os.fdopen(ready_fd, "w", encoding="utf-8") as ready:
            ready.write(url)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except (OSError, OverflowError):
        return False
    return True
