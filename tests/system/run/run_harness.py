"""What the tests of `promptmill run` share: the command as a process, and a look at what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

COMMAND = (sys.executable, "-c", "from workers.cli import main; main()", "run")
PRIVATE = ("PROMPTMILL_", "OPENAI_", "HOLYSHEEP_", "N1N_", "CELERY_")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.stdout)


class Started:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def children(self) -> list[psutil.Process]:
        """Its processes, as long as it lives."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self, *, timeout_s: float = 100.0) -> Finished:
        stdout, stderr = self.process.communicate(timeout=timeout_s)
        return Finished(self.process.returncode, stdout, stderr)


@dataclass(frozen=True)
class RunCommand:
    """Starts `promptmill run` in a directory of the test's own."""

    directory: Path
    started: list[Started] = field(default_factory=list)

    def start(self, *arguments: object, **environ: str) -> Started:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=self.directory,
            env=inherited | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(Started(process))
        return self.started[-1]

    def close(self) -> None:
        """End what a failed test has left; the lifeline ends the rest."""
        for started in self.started:
            with started.process:
                started.process.kill()

    def __call__(self, *arguments: object, **environ: str) -> Finished:
        return self.start(*arguments, **environ).finish()


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """Output rows by the line of the input; a line with two of them fails the test."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_line = {row["promptmill"]["line"]: row for row in rows}
    assert len(by_line) == len(rows), "one row of output for each row of input"
    return by_line
