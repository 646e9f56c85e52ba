"""The fenced blocks of README and docs, and a checkout in which they run as pasted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from workers.commands.run.processes.redis_server import redis_binary

__all__ = ["PAGES", "ROOT", "Block", "Checkout", "blocks_of"]

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "packaging" / "client" / "README.md",
]
FENCED = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
PATIENCE_S = 100.0


@dataclass(frozen=True)
class Block:
    """One of a page, named by its first line. `reason`: why no test runs it."""

    page: str
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> tuple[str, str]:
        return self.page, self.text.partition("\n")[0]

    @property
    def commands(self) -> str:
        """Of a console block: what is typed."""
        return "\n".join(re.findall(r"^\$ (.*)$", self.text, re.M))


def blocks_of(page: Path) -> list[Block]:
    name = str(page.relative_to(ROOT))
    return [
        Block(name, found["language"], found["text"], found["reason"]) for found in FENCED.finditer(page.read_text())
    ]


class Checkout:
    """A copy of what is under version control, with the developers' `.venv`, in which commands are typed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)
        venv = directory / ".venv"
        venv.mkdir()
        for part in Path(sys.prefix).iterdir():
            if part.suffix != ".stamp":
                (venv / part.name).symlink_to(part)
        for stamp in ("run.stamp", "dev.stamp"):  # or `make` would install this copy into it
            (venv / stamp).touch()
        self._tools = directory / ".tools"
        self._tools.mkdir()
        self._logs = directory / ".logs"
        self._logs.mkdir()

    def tool(self, name: str, command: str) -> None:
        """Have the name, when it is typed, mean this command with the arguments behind it."""
        script = self._tools / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)

    def redis(self, port: int) -> None:
        """Have `redis-server` start one on this port."""
        self.tool("redis-server", f"{redis_binary()} --port {port} --bind 127.0.0.1 --dir {self.directory} --save ''")

    def environ(self, **variables: str) -> dict[str, str]:
        """A login shell's, with the virtual environment activated."""
        path = os.pathsep.join(
            [str(self._tools), str(self.directory / ".venv" / "bin"), "/usr/local/bin:/usr/bin:/bin"]
        )
        return {"PATH": path, "HOME": str(self.directory), "LANG": "C.UTF-8", "COLUMNS": "100", **variables}

    def run(self, commands: str, *, exit_code: int = 0, **variables: str) -> str:
        """Type them, wait for their end, and return all that is printed. What they leave running is ended."""
        with self._typed(commands, variables) as (shell, log):
            code = shell.wait(PATIENCE_S)
            printed = log.read_text(errors="replace")
        assert code == exit_code, printed
        return printed

    @contextmanager
    def running(self, command: str, **variables: str) -> Iterator[Path]:
        """Type it and leave it running for the block; yields its log."""
        with self._typed(command, variables) as (_, log):
            yield log

    @contextmanager
    def _typed(self, commands: str, variables: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        with NamedTemporaryFile(dir=self._logs) as output:
            shell = subprocess.Popen(
                ["bash", "-e", "-c", commands],
                cwd=self.directory,
                env=self.environ(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield shell, Path(output.name)
            finally:
                _end_session(shell.pid)
                shell.wait()


def _end_session(leader: int) -> None:
    """End the processes that a shell of ours has left running."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
