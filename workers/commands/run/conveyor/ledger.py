"""Which submitted jobs have no row of output yet, and the rows on their way to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import PromptQueue
from tasks.errors import QueueUnavailable
from tasks.results import PromptResult

from ..errors import RunError
from ..input.rows import BadRow, Row
from ..output.output_file import OutputFile, answer_line, refusal_line
from ..output.state import RunState
from ..output.tally import ALIKE, Tally

__all__ = ["Ledger", "Unfinished"]

CHECKPOINT_S = 0.5
FORGET_AT_ONCE = 500

SHOWN_REASON = 500
"""Characters of the provider's own words for why everything fails."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A submitted row without an answer; its prompt is in Redis and not here."""

    line: int
    custom_id: str
    digest: str
    size_bytes: int


class Ledger:
    """Writes each row of output once. An answer is deleted from Redis only after the disk has it."""

    def __init__(
        self,
        *,
        queue: PromptQueue,
        input_path: Path,
        output: OutputFile,
        state: RunState,
        tally: Tally,
        on_bad_row: Callable[[BadRow], None],
    ) -> None:
        self._queue = queue
        self._input_path = input_path
        self._output = output
        self._state = state
        self._tally = tally
        self._on_bad_row = on_bad_row
        self._written: list[str] = []
        self.unfinished: dict[str, Unfinished] = {}
        """By job id."""
        self.size_bytes = 0
        """Of the unfinished jobs."""
        self.moved = asyncio.Event()
        """Set when results have been written."""

    def job_id(self, row: Row) -> str:
        """The id under which the row is submitted, in this run and in one that continues it."""
        return self._state.job_id(custom_id=row.custom_id, digest=row.digest)

    def expect(self, job_id: str, row: Row) -> None:
        """The row is about to be submitted."""
        self.unfinished[job_id] = Unfinished(row.line, row.custom_id, row.digest, row.size_bytes)
        self.size_bytes += row.size_bytes
        self._tally.submit(row)

    def refuse_job(self, job_id: str, row: Row, bad: BadRow) -> None:
        """The queue does not take the row."""
        self._finish(job_id)
        self._tally.withdraw(row)
        self.refuse(bad)

    def refuse(self, bad: BadRow) -> None:
        """Write the row of output of a row that can't be submitted."""
        self._tally.refuse(bad)
        self._on_bad_row(bad)
        job_id = self._state.job_id(custom_id=f"line-{bad.line}", digest="")  # its own may be another row's
        self._output.append(refusal_line(bad, job_id=job_id, input_path=self._input_path))

    def settle(self, results: Iterable[PromptResult]) -> None:
        """Write the rows of output of jobs that have ended. Raises `RunError` when all have failed alike."""
        for result in results:
            job = self._finish(result.id)
            if job is not None:
                self._tally.end(result)
                self._output.append(answer_line(result, custom_id=job.custom_id, line=job.line, digest=job.digest))
                self._written.append(result.id)
                if self._tally.all_failed_alike:
                    raise _hopeless(result)
        self.moved.set()

    def _finish(self, job_id: str) -> Unfinished | None:
        job = self.unfinished.pop(job_id, None)
        if job is not None:
            self.size_bytes -= job.size_bytes
        return job

    async def keep(self) -> None:
        """Make a checkpoint now and then, until cancelled."""
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Bring what is written to the disk, and only then delete it from Redis."""
        self._output.flush()
        written, self._written = self._written, []
        await asyncio.to_thread(self._output.sync)
        for start in range(0, len(written), FORGET_AT_ONCE):
            await self._forget(written[start : start + FORGET_AT_ONCE])

    async def _forget(self, job_ids: Sequence[str]) -> None:
        try:
            await self._queue.forget(*job_ids)
        except QueueUnavailable:
            return  # they expire by themselves; a run that continues looks at the output first


def _hopeless(result: PromptResult) -> RunError:
    assert result.error is not None
    error = result.error
    said = f" The provider said: {_printable(error.provider_body)}" if error.provider_body else ""
    return RunError(
        f"The first {ALIKE} rows have all failed alike, so the rest is not sent: {error.code}: {error.message}.{said}"
    )


def _printable(text: str) -> str:
    """One line of it, without what a terminal would act on."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:SHOWN_REASON]
