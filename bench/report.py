"""What a run of the benchmarks has found so far."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .plan import Plan

__all__ = ["Report", "Verdict"]

SHOWN = ("celery", "kombu", "redis", "aiohttp", "uvloop")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure beside the limit that the project has set for it."""

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_kept(self) -> bool:
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def shown(self) -> str:
        return f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.3g}"

    @property
    def limit(self) -> str:
        return f"at most {self.at_most:,g}" if self.at_most is not None else f"at least {self.at_least:,g}"


@dataclass(slots=True)
class Report:
    """Figures and verdicts, and the console to show them on. `against` is another checkout to measure beside ours."""

    plan: Plan
    console: Console
    against: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Progress, in one line."""
        self.console.print(text, style="dim", highlight=False)

    def show(self, table: Table) -> None:
        self.console.print()
        self.console.print(table)

    def show_machine(self) -> None:
        """What the figures were measured on."""
        packages = ", ".join(f"{name} {version(name)}" for name in SHOWN)
        load = os.getloadavg()[0]
        self.say(f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, load average {load:.1f}")

    def show_verdicts(self) -> None:
        if not self.verdicts:
            return
        table = Table(title="Limits", title_justify="left")
        table.add_column("")
        table.add_column("measured", justify="right")
        table.add_column("limit", justify="right")
        table.add_column("")
        for verdict in self.verdicts:
            kept = "kept" if verdict.is_kept else "[bold red]MISSED[/]"
            table.add_row(verdict.what, verdict.shown, verdict.limit, kept)
        self.show(table)
