"""Moves the rows of a source through a queue into an output."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tasks import PromptQueue
from tasks.errors import GroupRolledBack, QueueUnavailable, UnknownJob
from tasks.results import PromptResult

from ..beside import beside
from ..errors import RunError
from ..input.rows import BadRow
from ..input.source import RowSource
from ..output.output_file import OutputFile
from ..output.state import RunState
from ..output.tally import Tally
from .feed import Feed, Window
from .ledger import Ledger
from .losses import Losses
from .shelf import Shelf
from .submitting import OUTAGE_RETRY_S, Submitter

__all__ = ["Conveyor"]

LAST_RESULTS_S = 5.0

COLLECT_PAUSE_S = 0.05
"""Results gather meanwhile: reading each as it comes (4 at a time under load) cost twice the CPU, here and in Redis."""


class Conveyor:
    """Feeds rows, collects results, and sees to it that a crash at any moment, ours or Redis's, loses none."""

    def __init__(
        self,
        *,
        queue: PromptQueue,
        source: RowSource,
        input_path: Path,
        output: OutputFile,
        state: RunState,
        shelf: Shelf,
        tally: Tally,
        window: Window,
        stop: asyncio.Event,
        on_bad_row: Callable[[BadRow], None],
    ) -> None:
        self._shelf = shelf
        self._group = queue.new_group()
        self._ledger = Ledger(
            queue=queue, input_path=input_path, output=output, state=state, tally=tally, on_bad_row=on_bad_row
        )
        self._submitter = Submitter(queue, self._group, self._ledger, stop=stop)
        self._losses = Losses(queue, source, self._ledger, shelf, self._submitter)
        self._feed = Feed(
            queue=queue,
            source=source,
            ledger=self._ledger,
            shelf=shelf,
            losses=self._losses,
            submitter=self._submitter,
            window=window,
            stop=stop,
            may_be_known=not state.is_new,  # of a run that is new, Redis can't know any job
        )

    @property
    def queued(self) -> int:
        """Jobs that are submitted and have not ended."""
        return len(self._ledger.unfinished)

    async def run(self, *, drain: Callable[[], Awaitable[None]]) -> None:
        """Until each row has its row of output; or, once `stop` is set, until `drain` has returned and what ended
        meanwhile is written."""
        losses, ledger = self._losses, self._ledger
        try:
            await beside(self._move(drain), self._collect(), losses.follow(), losses.audit(), ledger.keep())
        finally:
            await ledger.checkpoint()

    async def _move(self, drain: Callable[[], Awaitable[None]]) -> None:
        await self._feed.run()
        await self._submitter.patiently(self._group.close)
        self._feed.begun.set()
        await self._feed.until(lambda: not self._ledger.unfinished)
        if self._ledger.unfinished:
            await drain()
            await self._take_last_results()

    async def _collect(self) -> None:
        await self._feed.begun.wait()
        while True:
            try:
                async for results in self._group.completed_batches():
                    await self._settle_or_cancel(results)
                    await asyncio.sleep(COLLECT_PAUSE_S)
            except (GroupRolledBack, UnknownJob):  # what Redis has left of it is read from its first
                await asyncio.sleep(OUTAGE_RETRY_S)
            except QueueUnavailable as error:
                raise RunError(str(error)) from None
            else:
                # A job that Redis has seen end twice was counted twice, and then another was not waited for.
                self._losses.follow_also(set(self._ledger.unfinished))
                return

    async def _settle_or_cancel(self, results: Iterable[PromptResult]) -> None:
        try:
            self._ledger.settle(results)
        except RunError:
            # Workers that are not ours would go on calling for the rest.
            with suppress(QueueUnavailable, UnknownJob):
                await self._group.cancel()
            raise

    async def _take_last_results(self) -> None:
        """Wait for the results that are in Redis already, now that nobody works any more."""
        ledger = self._ledger
        ended = await self._shelf.ended(ledger.unfinished)
        try:
            async with asyncio.timeout(LAST_RESULTS_S):
                while ended & ledger.unfinished.keys():
                    ledger.moved.clear()
                    await ledger.moved.wait()
        except TimeoutError:
            return  # they stay in Redis, and the run that continues takes them up
