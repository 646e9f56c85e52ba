"""`python -m workers.simulator`: the command `promptmill simulate` on its own."""

from __future__ import annotations

import typer

from .command import simulate

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
app.command()(simulate)

if __name__ == "__main__":
    app(prog_name="python -m workers.simulator")
