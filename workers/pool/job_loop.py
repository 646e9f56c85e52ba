"""The loop's thread, and the jobs on it."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from billiard.einfo import ExceptionInfo
from celery.exceptions import SoftTimeLimitExceeded, WorkerLostError, reraise
from kombu.utils.imports import symbol_by_name

from ..prompt.parked import Parked
from .greenlets import run_job
from .handover import Inbox
from .threads import task_threads
from .tracer import forget_frames, without_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from celery import Celery

    from .handover import Outbox
    from .job import Job

__all__ = ["JobLoop"]

logger = logging.getLogger("promptmill.pool")

CANCEL_AGAIN_S = 1.0
"""A task that swallows its cancellation is cancelled again after this many seconds, until it ends."""

LIFESPAN_TIMEOUT_S = 30.0
"""How long opening, or closing, what lives as long as the pool may take."""

LEFTOVERS_TIMEOUT_S = 1.0
"""How long a shutdown waits for the clean-up of sub-tasks that jobs left running."""

HEARTBEAT_S = 0.25
"""How often the loop says that it is alive."""

STOP_TIMEOUT_S = 5.0
"""How long the thread may take to end."""


class JobLoop:
    """Runs jobs on an asyncio loop in a thread of its own. Its methods are for other threads, but for those below."""

    def __init__(self, outbox: Outbox, *, on_end: Callable[[Job], None]) -> None:
        """`on_end` is called through the outbox, with each job that has ended."""
        self.beat_at = 0.0
        """When the loop was last known to be alive, on the monotonic clock."""
        self._outbox = outbox
        self._on_end = on_end
        self.inbox = Inbox(self.call_soon, self._start_job)
        """Jobs that it has yet to begin."""
        self._thread: threading.Thread | None = None

    # -- life

    def start(self, app: Celery, *, threads: int) -> None:
        """Start the thread and open the app's lifespans on the loop; `threads` at most for blocking calls."""
        _tune_interpreter()
        self._loop = _new_event_loop()
        self._threads = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="promptmill-task")
        self._loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run_loop, name="promptmill-loop", daemon=True)
        self._thread.start()
        self._lifespans = AsyncExitStack()
        try:
            self._on_loop(self._open_lifespans(app))
        except BaseException:
            self.close()  # Celery does not stop a pool that has not started
            raise
        self._loop.call_soon_threadsafe(self._beat)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def kind(self) -> str:
        """The library whose loop it is."""
        return type(self._loop).__module__.partition(".")[0]

    def close(self) -> None:
        """Close the lifespans, end what jobs have left running, and stop the thread."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._on_loop(self._lifespans.aclose())
            self._on_loop(self._cancel_leftovers())
        except Exception:
            logger.exception("Closing what lived as long as the pool failed")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIFESPAN_TIMEOUT_S)

    async def _open_lifespans(self, app: Celery) -> None:
        for path in app.conf.get("worker_lifespans") or ():
            await self._lifespans.enter_async_context(symbol_by_name(path)(app))

    async def _cancel_leftovers(self) -> None:
        """End the sub-tasks that jobs left running. After the lifespans: their own tasks had work to finish."""
        leftovers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in leftovers:
            task.cancel()
        if leftovers:
            await asyncio.wait(leftovers, timeout=LEFTOVERS_TIMEOUT_S)
        await self._loop.shutdown_asyncgens()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # asyncio lets these through when a sub-task that nobody awaits raises them.
                logger.exception("A task tried to end the worker's process; it goes on")
                continue
            break
        self._loop.close()

    def _beat(self) -> None:
        self.beat_at = time.monotonic()
        self._loop.call_later(HEARTBEAT_S, self._beat)

    # -- jobs

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have it called on the loop's thread."""
        self._loop.call_soon_threadsafe(callback)

    def withdraw(self) -> set[Job]:
        """Take back the jobs that it has not begun, because it is blocked."""
        withdrawn: set[Job] = set()
        while self.inbox:
            with suppress(IndexError):  # the loop has moved just now, and begins it
                job = self.inbox.waiting.popleft()
                job.cancelled = True
                withdrawn.add(job)
        return withdrawn

    def end(self, job: Job, *, interrupt: bool = False) -> None:
        """Cancel a job; `interrupt`: raise SoftTimeLimitExceeded in one that has a soft time limit."""
        self._loop.call_soon_threadsafe(self._interrupt if interrupt else self._cancel, job)

    def end_all(self, jobs: Callable[[], Iterable[Job]]) -> None:
        """Cancel all jobs that there are when the loop comes to it."""
        self._loop.call_soon_threadsafe(self._cancel_all, jobs)

    def what_blocks(self, jobs: Iterable[Job]) -> str:
        """The task that keeps the loop from moving, and the line it is at. Never its arguments."""
        running = asyncio.current_task(self._loop)
        names = [job.run.args[0] for job in jobs if job.task is not None and job.task is running]
        frame = sys._current_frames().get(cast("int", cast("threading.Thread", self._thread).ident))
        line = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "an unknown line"
        return f"the task {names[0]}, at {line}" if names else line

    # -- on the loop's thread

    def _start_job(self, job: Job) -> None:
        if job.cancelled:
            self._ended(job)
            return
        job.task = self._loop.create_task(self._trace(job))
        if job.soft_timeout_s:
            job.timers.append(self._loop.call_later(job.soft_timeout_s, self._soft_time_limit, job))
        if job.timeout_s:
            job.timers.append(self._loop.call_later(job.timeout_s, self._hard_time_limit, job))

    async def _trace(self, job: Job) -> None:
        try:
            if job.is_bridged:
                returned = await run_job(job, job.token, job.run)
            else:
                # A task on another base class doesn't know the bridge: trace it in a thread, as Celery's thread pool.
                returned = await self._loop.run_in_executor(task_threads, job.run)
        except asyncio.CancelledError:
            # The pool's own doing, through `_cancel`: Celery has recorded the job's end, and wants no callback.
            job.cancelled = True
        except Parked as parked:
            if job.error_callback is not None:
                job.outcome = partial(job.error_callback, without_traceback(parked))
        except BaseException as exc:  # noqa: BLE001 - a job must not end the loop; SystemExit is a lost worker to Celery
            if job.error_callback is not None:
                job.outcome = partial(job.error_callback, _worker_lost(exc))
        else:
            if job.callback is not None:
                job.outcome = partial(job.callback, _survivable(*returned) if returned[0] else returned)
        for timer in job.timers:
            timer.cancel()
        self._ended(job)

    def _ended(self, job: Job) -> None:
        self._outbox.post(partial(self._on_end, job))

    def _cancel(self, job: Job) -> None:
        # Once, whoever asks again (a shutdown asks twice): the second time would hit the task's clean-up.
        if job.cancelled or job.has_ended:
            return
        job.cancelled = True
        self._cancel_task(job)

    def _cancel_task(self, job: Job) -> None:
        if job.task is not None and not job.has_ended:
            job.task.cancel()
            job.timers.append(self._loop.call_later(CANCEL_AGAIN_S, self._cancel_task, job))

    def _cancel_all(self, jobs: Callable[[], Iterable[Job]]) -> None:
        for job in jobs():
            self._cancel(job)

    def _interrupt(self, job: Job) -> None:
        if job.task is None or job.has_ended:
            return
        if not job.may_be_interrupted:
            self._cancel(job)
            return
        job.interrupt = SoftTimeLimitExceeded(job.soft_timeout_s)
        if job.in_body:
            # Elsewhere it would end the tracer, and with it the job's result and acknowledgement.
            job.task.cancel()

    def _soft_time_limit(self, job: Job) -> None:
        self._interrupt(job)
        if job.timeout_callback is not None:
            self._outbox.post(partial(job.timeout_callback, True, cast("float", job.soft_timeout_s)))

    def _hard_time_limit(self, job: Job) -> None:
        if job.cancelled:
            return
        if job.timeout_callback is not None:
            self._outbox.post(partial(job.timeout_callback, False, cast("float", job.timeout_s)))
        self._cancel(job)


def _worker_lost(exc: BaseException) -> ExceptionInfo:
    """What Celery calls a job whose process ended: SystemExit and the like, raised by the task's code."""
    try:
        if isinstance(exc, Exception):
            raise exc
        reraise(WorkerLostError, WorkerLostError(repr(exc)), exc.__traceback__)
    except Exception:  # noqa: BLE001 - raised just above, to give the record a traceback
        return ExceptionInfo()


def _survivable(failed: int, info: ExceptionInfo, runtime: float) -> tuple[int, ExceptionInfo, float]:
    """What the tracer returned of a failure, without a MemoryError, which it has recorded as the job's already.

    Celery raises it again in the main process (celery/worker/request.py, on_failure) and leaves the message
    unacknowledged, so that the job would come back.
    """
    forget_frames(info)
    if isinstance(getattr(info.exception, "exc", info.exception), MemoryError):
        info.exception = RuntimeError(f"The task ran out of memory: {info.exception!r}")
    return failed, info, runtime


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _tune_interpreter() -> None:
    """Settings of the whole process that pay at hundreds of jobs in flight (docs/performance.md)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # Two busy threads share the interpreter's lock: fewer forced hand-overs cost less than they delay.
    sys.setswitchinterval(0.005)
