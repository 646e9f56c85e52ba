"""A run from start to end: what is checked, started and stopped, in which order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager

from rich.console import Console

from config.catalog import Catalog, CatalogError, load_catalog
from config.settings import Settings
from tasks import PromptQueue
from workers.telemetry.terminal import printable

from .beside import beside
from .conveyor import Conveyor, Window
from .conveyor.shelf import Shelf
from .errors import UnusableInput
from .input.input_file import MAX_LINE_BYTES
from .input.models import ModelCheck
from .input.rows import DEFAULT_MODEL, BadRow, RowReader
from .input.schema_file import read_schema
from .input.source import RowSource, count_rows
from .notices import show_notices
from .options import RunOptions
from .output.output_file import OutputFile
from .output.progress import show_progress
from .output.state import RunState
from .output.summary import Outcome
from .output.tally import Tally
from .processes.services import Services, running_services

__all__ = ["Session"]

DRAIN_S = 10.0
MAX_JOB_BYTES = 2 * MAX_LINE_BYTES
"""What is larger was a line too long to read; a job is at most a little longer than its line."""
MIN_WINDOW_JOBS = 2_000
WINDOW_PER_SLOT = 8
SHOWN_BAD_ROWS = 10
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupted(Exception):
    """Somebody wants the run to stop before it has begun."""


class Session:
    """One run. `run` may be called once."""

    def __init__(self, options: RunOptions, *, settings: Settings, console: Console) -> None:
        self._options = options
        self._settings = settings
        self._console = console
        self._tally = Tally()
        self._total: int | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._has_submitted = False
        self._born_s = time.monotonic()

    def interrupt(self) -> None:
        """Stop submitting and let the workers finish what they are answering; the second time, stop at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> Outcome:
        """Raises `RunError`; whatever happens, no process stays behind and the output can be continued."""
        with self._signals():
            state = RunState.open(self._options.output)
            finished = False
            try:
                outcome = await self._run(state)
                finished = not outcome.interrupted
            finally:
                state.close(finished=finished or (state.is_new and not self._has_submitted))
        return outcome

    async def _run(self, state: RunState) -> Outcome:
        with ExitStack() as files:
            output = OutputFile.open(self._options.output)
            files.callback(self._close, output)
            catalog = self._catalog()
            source = self._source(output, catalog)
            files.callback(source.close)
            if not await self._something_to_do(source):
                return self._outcome(self._born_s, interrupted=False)
            try:
                return await self._serve(source, output, catalog, state)
            except _Interrupted:
                return self._outcome(time.monotonic(), interrupted=True)

    def _close(self, output: OutputFile) -> None:
        output.close()
        if not self._has_submitted:
            output.discard()

    def _catalog(self) -> Catalog | None:
        if self._options.workers == 0:
            return None
        if (server := self._options.own_server) is not None:
            return server.catalog()
        try:
            return load_catalog(self._settings.catalog)
        except CatalogError as error:
            raise UnusableInput(str(error)) from None

    def _source(self, output: OutputFile, catalog: Catalog | None) -> RowSource:
        options = self._options
        simulated = options.simulation is not None
        return RowSource(
            options.input,
            reader=RowReader(
                model=options.model,
                default_model=DEFAULT_MODEL if options.base_url is None else None,
                field=options.field,
                simulated=simulated,
                schema=read_schema(options.schema),
                repair=options.repair,
            ),
            models=ModelCheck(catalog, with_keys=not simulated),
            finished=output.finished,
            limit=options.limit,
        )

    async def _something_to_do(self, source: RowSource) -> bool:
        await asyncio.to_thread(source.check_first_line)
        self._tally.kept = await asyncio.to_thread(source.check_finished, self._options.output)
        await asyncio.to_thread(source.check_first_model)
        if self._tally.kept:
            await self._count()
        return self._total != self._tally.kept or not self._tally.kept

    async def _count(self) -> None:
        self._total = await asyncio.to_thread(count_rows, self._options.input, limit=self._options.limit)

    async def _serve(self, source: RowSource, output: OutputFile, catalog: Catalog | None, state: RunState) -> Outcome:
        async with AsyncExitStack() as stack:
            self._say(self._options.services_text())
            starting = running_services(
                self._options, settings=self._settings, catalog=catalog, state=state, say=self._say
            )
            services = await beside(stack.enter_async_context(starting), self._until_interrupted())
            queue = PromptQueue(services.redis_url, key_prefix=self._settings.key_prefix, max_job_bytes=MAX_JOB_BYTES)
            stack.push_async_callback(queue.aclose)
            conveyor = self._conveyor(queue, services, source, output, state)
            return await self._convey(conveyor, services)

    async def _until_interrupted(self) -> None:
        await self._stop.wait()
        raise _Interrupted

    def _conveyor(
        self, queue: PromptQueue, services: Services, source: RowSource, output: OutputFile, state: RunState
    ) -> Conveyor:
        slots = self._options.workers * (self._options.concurrency or self._settings.concurrency)
        return Conveyor(
            queue=queue,
            source=source,
            input_path=self._options.input,
            output=output,
            state=state,
            shelf=Shelf(services.redis, key_prefix=self._settings.key_prefix),
            tally=self._tally,
            window=Window(jobs=max(MIN_WINDOW_JOBS, WINDOW_PER_SLOT * slots)),
            stop=self._stop,
            on_bad_row=self._show_bad_row,
        )

    async def _convey(self, conveyor: Conveyor, services: Services) -> Outcome:
        async def drain() -> None:
            self._say("Stopping: what is being answered is finished first. Ctrl-C again: stop at once.")
            if services.fleet is not None:
                await services.fleet.stop(grace_s=DRAIN_S, hurry=self._hurry)

        self._has_submitted = True
        started_s = time.monotonic()
        progress = show_progress(self._console, self._tally, queued=lambda: conveyor.queued, total=lambda: self._total)
        notices = show_notices(services.redis, key_prefix=self._settings.key_prefix, say=self._say)
        await beside(conveyor.run(drain=drain), services.watch(), progress, notices, self._count())
        return self._outcome(started_s, interrupted=self._stop.is_set())

    def _show_bad_row(self, bad: BadRow) -> None:
        if self._tally.bad_rows <= SHOWN_BAD_ROWS:
            self._say(f"{self._options.input}:{bad.line}: {printable(bad.reason)}")
        elif self._tally.bad_rows == SHOWN_BAD_ROWS + 1:
            self._say("There are more bad rows; the output names them all.")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _outcome(self, started_s: float, *, interrupted: bool) -> Outcome:
        return Outcome(
            tally=self._tally,
            wall_s=time.monotonic() - started_s,
            startup_s=started_s - self._born_s,
            interrupted=interrupted,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
