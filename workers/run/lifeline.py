"""Starts the processes of a run, and sees to it that none outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

__all__ = ["Child", "Lifeline", "log_tail"]

Kind = Literal["worker", "server"]

GUARDIAN = Path(__file__).with_name("lifeline.sh")
GUARDIAN_GRACE_S = 3

# A child reports itself before it becomes the command, so that there is no moment at which we could be killed and
# the guardian not know of it. Its stdin is the guardian's pipe until then.
REGISTER = 'echo "add $1 $$" >&0 && shift && exec "$@" </dev/null'

TAIL_BYTES = 2_000


class Child:
    """A process that a `Lifeline` has started. It leads a process group of its own: Ctrl-C does not reach it."""

    def __init__(self, process: asyncio.subprocess.Process, *, lifeline: Lifeline, kind: Kind, log: Path) -> None:
        self._process = process
        self._lifeline = lifeline
        self.kind = kind
        self.log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        return self._process.stdout

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> int:
        """The exit code, negative for a signal, once the process has ended."""
        code = await self._process.wait()
        self._lifeline.forget(self)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def stop(self, *, grace_s: float) -> None:
        """TERM, and KILL after the grace time. Returns when the process is gone."""
        if not self.has_ended:
            self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()


class Lifeline:
    """A shell that waits for the end of a pipe from us and then stops what we have started.

    It costs one sleeping `sh`, and unlike Linux's PR_SET_PDEATHSIG it works on every POSIX system, gives time to
    stop in order and reaches the children's children. Within `2 x GUARDIAN_GRACE_S` of a kill -9 all are gone.
    """

    def __init__(self) -> None:
        self._pipe: int | None = None
        self._guardian: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        read_end, write_end = os.pipe()
        try:
            self._guardian = await asyncio.create_subprocess_exec(
                *("/bin/sh", str(GUARDIAN), str(GUARDIAN_GRACE_S)),
                stdin=read_end,
                # It outlives us: whoever reads our output to its end must not wait for it.
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)
        self._pipe = write_end

    async def start(
        self,
        command: Sequence[str],
        *,
        kind: Kind,
        log: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        piped: bool = False,
    ) -> Child:
        """Start a command with stdout and stderr in the file `log`; with `piped`, stdout comes to us instead."""
        if self._pipe is None:
            raise RuntimeError("The lifeline is closed: nothing may be started that it would not end.")
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", REGISTER, "sh", kind, *command),
                stdin=self._pipe,
                stdout=asyncio.subprocess.PIPE if piped else output,
                stderr=output,
                env=environ,
                cwd=cwd,
                start_new_session=True,
            )
        return Child(process, lifeline=self, kind=kind, log=log)

    def forget(self, child: Child) -> None:
        """Tell the guardian that a process has ended: its number may be another's soon."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody has killed the guardian
                os.write(self._pipe, f"drop {child.kind} {child.pid}\n".encode())

    async def close(self) -> None:
        """Let go. What is still running is stopped by the guardian, and this waits for that."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._guardian is not None:
            await self._guardian.wait()


def log_tail(log: Path) -> str:
    """The last lines of a process's log, for an error's text."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text or "(it wrote nothing)"
