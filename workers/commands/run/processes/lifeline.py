"""Starts the processes of a run, and sees to it that none outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
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

    def __init__(self, process: subprocess.Popen[bytes], *, lifeline: Lifeline, kind: Kind, log: Path) -> None:
        self.pid = process.pid
        self.kind = kind
        self.log = log
        self._lifeline = lifeline
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        # A thread of its own: it would hold one of the loop's few for as long as the process lives.
        threading.Thread(target=self._reap, args=(process,), daemon=True).start()

    @property
    def has_ended(self) -> bool:
        return self._code.done()

    async def wait(self) -> int:
        """The exit code, negative for a signal, once the process has ended."""
        return await asyncio.shield(self._code)

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

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(self._note_end, code)

    def _note_end(self, code: int) -> None:
        self._lifeline.forget(self)
        if not self._code.done():
            self._code.set_result(code)


class Lifeline:
    """A shell that waits for the end of a pipe from us and then stops what we have started.

    It costs one sleeping `sh`, and unlike Linux's PR_SET_PDEATHSIG it works on every POSIX system, gives time to
    stop in order and reaches the children's children. Within `2 x GUARDIAN_GRACE_S` of a kill -9 all are gone.
    """

    def __init__(self) -> None:
        self._pipe: int | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        read_end, self._pipe = os.pipe()
        try:
            self._guardian = subprocess.Popen(
                ("/bin/sh", str(GUARDIAN), str(GUARDIAN_GRACE_S)),
                stdin=read_end,
                # It outlives us: whoever reads our output to its end must not wait for it.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def start(
        self,
        command: Sequence[str],
        *,
        kind: Kind,
        log: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start a command; what it prints goes into the file `log`. Must be called on the event loop.

        It inherits the descriptors `pass_fds`, under their numbers.
        """
        if self._pipe is None:
            raise RuntimeError("The lifeline is closed: nothing may be started that it would not end.")
        with log.open("ab") as output:
            # Not asyncio's subprocesses: uvloop's inherit a copy of the pipe that nobody closes, and as long as a
            # child has it open, our end does not end the pipe.
            process = subprocess.Popen(
                ("/bin/sh", "-c", REGISTER, "sh", kind, *command),
                stdin=self._pipe,
                stdout=output,
                stderr=output,
                env=environ,
                cwd=cwd,
                pass_fds=pass_fds,
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
            await asyncio.to_thread(self._guardian.wait)


def log_tail(log: Path) -> str:
    """The last lines of a process's log, for an error's text."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text or "(it wrote nothing)"
