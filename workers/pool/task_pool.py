"""Celery's worker pool on one asyncio loop.

Two threads. The main thread is Celery's: consumer, hub, requests, acknowledgements. The loop's thread runs the jobs.
They hand work over in batches: jobs through an inbox that wakes the loop once, outcomes through an outbox that wakes
the hub once. No Celery callback runs on the loop's thread, because the hub has made Celery's locks dummies
(celery/worker/components.py, Hub._patch_thread_primitives).

    hub thread                                          loop thread
    on_apply ──▶ inbox ── call_soon_threadsafe ──▶ _start_jobs ──▶ asyncio task ──▶ greenlets.run_job
    _deliver ◀── outbox ◀── Bell ───────────────────────────────── _ended

Selected by `worker_pool = "workers.pool:TaskPool"`, so that a bare `celery -A workers worker` uses it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import signal
import socket
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, WorkerLostError, reraise
from celery.worker import state as worker_state
from kombu.utils.imports import symbol_by_name

from ..prompt.parked import Parked
from .app import Task
from .greenlets import Cancellable, run_job
from .threads import task_threads
from .tracer import forget_frames, without_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from kombu.asynchronous import Hub
    from kombu.asynchronous.semaphore import LaxBoundedSemaphore

__all__ = ["Job", "TaskPool", "shutdown_has_begun"]

logger = logging.getLogger("promptmill.pool")

START_CHUNK = 64
"""Jobs started in one turn of the loop. 1,000 in one turn kept every socket waiting for 359 ms."""

CANCEL_AGAIN_S = 1.0
"""A task that swallows its cancellation is cancelled again after this many seconds, until it ends."""

LIFESPAN_TIMEOUT_S = 30.0
"""How long opening, or closing, what lives as long as the pool may take."""

TERMINATE_TIMEOUT_S = 5.0
"""How long a cold shutdown waits for the cancelled jobs' clean-up."""

LEFTOVERS_TIMEOUT_S = 1.0
"""How long a shutdown waits for the clean-up of sub-tasks that jobs left running."""

HEARTBEAT_S = 0.25
"""How often the loop says that it is alive."""


class Job(Cancellable):
    """One task in the pool: what Celery holds to end it early (by weak reference, hence `__weakref__`)."""

    __slots__ = (
        "__weakref__",
        "callback",
        "error_callback",
        "is_bridged",
        "outcome",
        "run",
        "soft_timeout_s",
        "task",
        "timeout_callback",
        "timeout_s",
        "timers",
        "token",
    )

    def __init__(
        self,
        token: int,
        run: partial[Any],
        *,
        callback: Callable[[Any], None] | None,
        error_callback: Callable[[ExceptionInfo], None] | None,
        timeout_callback: Callable[[bool, float], None] | None,
        soft_timeout_s: float | None,
        timeout_s: float | None,
        is_bridged: bool,
    ) -> None:
        super().__init__(may_be_interrupted=soft_timeout_s is not None)
        self.token = token
        self.run = run
        self.callback = callback
        self.error_callback = error_callback
        self.timeout_callback = timeout_callback
        self.soft_timeout_s = soft_timeout_s
        self.timeout_s = timeout_s
        self.is_bridged = is_bridged
        """Its task is one of the bridge's, whose tracer runs on the loop."""
        self.task: asyncio.Task[None] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.outcome: Callable[[], Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the loop is done with it; the hub may not know yet."""
        return self.task is not None and self.task.done()

    def terminate(self, signum: int | None = None) -> None:
        """Nothing: Celery calls `terminate_job` first, and this right after it, for pools that may have missed it.

        To pass it on would cancel, or interrupt, twice: the second would hit the task's clean-up after the first.
        """


class Bell:
    """Rung on the loop's thread, heard by the hub, which polls it.

    Not `hub.call_soon(deliver)`: what a callback of the hub makes ready in its turn, such as an acknowledgement, waits
    for the next event or timer, up to a second (kombu/asynchronous/hub.py, create_loop). After an event it does not.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def ring(self) -> None:
        with suppress(OSError):
            self._writer.send(b"\0")

    def silence(self) -> None:
        with suppress(OSError):
            self.reader.recv(4096)

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


class TaskPool(BasePool):  # type: ignore[misc]  # Celery publishes no types
    """Hundreds of jobs at a time on one asyncio loop, with Celery's own tracer around each."""

    uses_semaphore = True  # slots are counted on the hub, where a waiting request can still be revoked
    task_join_will_block = True
    signal_safe = False
    calls_back_on_hub = True
    """Celery's callbacks run on the hub's thread, and nowhere else."""
    body_can_be_buffer = True

    limit: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokens = itertools.count(1)
        self.beat_at = 0.0
        """When the loop was last known to be alive, on the monotonic clock."""
        self._jobs: dict[int, Job] = {}
        self._inbox: deque[Job] = deque()
        self._inbox_announced = False
        self._outbox: deque[Callable[[], Any]] = deque()
        self._outbox_announced = False
        self._outbox_filled = threading.Event()
        self._bell = Bell()
        self._hub: Hub | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._started = 0

    @cached_property
    def _tasks(self) -> Any:
        # The app's own property takes a lock at each look.
        return self.app.tasks

    @property
    def _semaphore(self) -> LaxBoundedSemaphore:
        return self.options["semaphore"]

    # -- life ------------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Start the loop's thread and open the lifespans on it.

        `app.conf.worker_lifespans` lists async context managers, each `"module:function"` taking the app; they are
        entered on the pool's loop before the first job and left after the last.
        """
        if self.options.get("threads"):
            raise ImproperlyConfigured(
                "The asyncio pool needs a broker that Celery can poll (Redis or AMQP): with this one Celery has no "
                "event loop of its own. Use a redis:// broker, or another pool with `-P threads`."
            )
        _tune_interpreter()
        # One connection for each job that may be publishing: a job that waited for a free one would hold up the loop.
        self.app.conf.broker_pool_limit = max(self.app.conf.broker_pool_limit or 0, self.limit + 10)
        self._loop = _new_event_loop()
        self._threads = ThreadPoolExecutor(max(self.limit, 1), thread_name_prefix="promptmill-task")
        self._loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run_loop, name="promptmill-loop", daemon=True)
        self._thread.start()
        self._lifespans = AsyncExitStack()
        try:
            self._on_loop(self._open_lifespans())
        except BaseException:
            self._close_loop()  # Celery does not stop a pool that has not started
            raise
        self._loop.call_soon_threadsafe(self._beat)

    def did_start_ok(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def register_with_event_loop(self, hub: Hub) -> None:
        """Have the hub hear of jobs that end. Celery calls it again after each reconnect, which resets the hub."""
        self._hub = hub
        hub.add_reader(self._bell.reader, self._deliver)

    def on_stop(self) -> None:
        """Warm shutdown: wait for the running jobs, with the hub ticking (acks, heartbeats), then close the loop."""
        if self._state != self.CLOSE or self._stopping:
            # From the SIGQUIT handler (celery/apps/worker.py, on_cold_shutdown), in the middle of whatever the main
            # thread was doing, perhaps inside the hub. `on_terminate`, or the warm stop below us, does the work.
            return
        self._stopping = True
        if self._hub is not None:
            self.register_with_event_loop(self._hub)  # a connection that was lost just now has reset the hub
        while self._jobs:
            self._tick()
        self._close_loop()

    def on_terminate(self) -> None:
        """Cold shutdown: cancel all jobs, give their clean-up a moment, deliver what had already ended."""
        self._loop.call_soon_threadsafe(self._cancel_all)
        until = time.monotonic() + TERMINATE_TIMEOUT_S
        while self._jobs and time.monotonic() < until:
            self._outbox_filled.wait(0.05)
            self._deliver()
        self._close_loop()

    def _tick(self) -> None:
        try:
            cast("Hub", self._hub).run_once()
        except Exception as exc:  # noqa: BLE001 - of whatever kind, the transport's errors must not end the drain
            # The broker is gone. Jobs still end, and their messages come back to another worker.
            logger.warning("The broker connection failed while jobs were being finished: %r", exc)
            self._outbox_filled.wait(1.0)
            self._deliver()

    def _close_loop(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._on_loop(self._lifespans.aclose())
            self._on_loop(self._cancel_leftovers())
        except Exception:
            logger.exception("Closing what lived as long as the pool failed")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._stopping = True
        self._thread.join(TERMINATE_TIMEOUT_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIFESPAN_TIMEOUT_S)

    async def _open_lifespans(self) -> None:
        for path in self.app.conf.get("worker_lifespans") or ():
            await self._lifespans.enter_async_context(symbol_by_name(path)(self.app))

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

    # -- hub thread: jobs in, outcomes out ---------------------------------------------------------------------------

    def apply_async(self, target: Callable[..., Any], args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """As the base class's, without its debug line: that would write the prompt into the log."""
        return self.on_apply(target, args or (), kwargs or {}, **options)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        *,
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        timeout_callback: Callable[[bool, float], None] | None = None,
        error_callback: Callable[[ExceptionInfo], None] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job | None:
        """Take a job, or, while stopping, leave it: its message then goes back to the queue."""
        if self._state != self.RUN or shutdown_has_begun():
            return None
        task = self._tasks.get(args[0]) if len(args) > 2 else None  # (name, id, request, ...), as Celery's tracers take
        if task is not None:
            soft_timeout, timeout = _current_limits(task, args[2])
        job = Job(
            next(self.tokens),
            partial(target, *args, **(kwargs or {})),
            callback=callback,
            error_callback=error_callback,
            timeout_callback=timeout_callback,
            soft_timeout_s=soft_timeout or self.options.get("soft_timeout"),
            timeout_s=timeout or self.options.get("timeout"),
            is_bridged=isinstance(task, Task),
        )
        self._jobs[job.token] = job
        self._started += 1
        if accept_callback is not None:
            try:
                accept_callback(job.token, time.monotonic())
            except Exception:
                # Raised from here, it would leave a job that is counted, and is never run.
                logger.exception("Announcing a job's start failed")
        self._inbox.append(job)
        if not self._inbox_announced:
            self._inbox_announced = True
            self._loop.call_soon_threadsafe(self._start_jobs)
        return job

    def requests_to_start(self) -> list[Any]:
        """Celery's requests that wait for a free place. None while stopping: they are not started any more."""
        if self._state != self.RUN or shutdown_has_begun():
            return []
        return [args[0] for _, args, _ in self._semaphore._waiting if args]

    def withdraw(self) -> list[Any]:
        """Give up the jobs that the loop has not begun, because it is blocked. Returns Celery's requests of them."""
        waiting = self.requests_to_start()
        self._semaphore._waiting.clear()
        withdrawn: set[Job] = set()
        while self._inbox:
            with suppress(IndexError):  # the loop has moved just now, and begins it
                job = self._inbox.popleft()
                job.cancelled = True
                withdrawn.add(job)
        for job in withdrawn:
            del self._jobs[job.token]
            self._semaphore.release()
        begun = [request for request in worker_state.active_requests if request._apply_result is not None]
        return waiting + [request for request in begun if request._apply_result() in withdrawn]

    def what_blocks(self) -> str:
        """The task that keeps the loop from moving, and the line it is at. Never its arguments."""
        running = asyncio.current_task(self._loop)
        names = [job.run.args[0] for job in tuple(self._jobs.values()) if job.task is not None and job.task is running]
        frame = sys._current_frames().get(cast("int", cast("threading.Thread", self._thread).ident))
        line = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "an unknown line"
        return f"the task {names[0]}, at {line}" if names else line

    def terminate_job(self, pid: int, signum: int | None = None) -> None:
        """End the job with this token, which Celery calls `worker_pid`.

        SIGUSR1 raises SoftTimeLimitExceeded in a job that has a soft time limit, as in Celery's prefork pool.
        """
        job = self._jobs.get(pid)
        if job is not None:
            interrupt = signum == signal.SIGUSR1
            self._loop.call_soon_threadsafe(self._interrupt if interrupt else self._cancel, job)

    def _deliver(self) -> None:
        self._bell.silence()
        self._outbox_announced = False
        self._outbox_filled.clear()
        outbox = self._outbox
        while outbox:
            deliver = outbox.popleft()
            try:
                deliver()
            except Exception:
                logger.exception("Recording a job's end failed")

    def _finish(self, job: Job) -> None:
        self._jobs.pop(job.token, None)
        try:
            if job.outcome is not None and not job.cancelled:
                job.outcome()
        finally:
            job.outcome = None  # frames of an exception in it may hold the job
            self._semaphore.release()

    # -- loop thread -------------------------------------------------------------------------------------------------

    def _start_jobs(self) -> None:
        self._inbox_announced = False
        inbox = self._inbox
        for _ in range(START_CHUNK):
            try:
                job = inbox.popleft()
            except IndexError:  # the hub may withdraw what is there
                return
            self._start_job(job)
        if inbox:
            self._inbox_announced = True
            self._loop.call_soon(self._start_jobs)

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
                job.outcome = partial(job.callback, _survivable(returned))
        for timer in job.timers:
            timer.cancel()
        self._ended(job)

    def _ended(self, job: Job) -> None:
        self._post(partial(self._finish, job))

    def _post(self, deliver: Callable[[], Any]) -> None:
        self._outbox.append(deliver)
        if not self._outbox_announced:
            self._outbox_announced = True
            self._outbox_filled.set()
            self._bell.ring()

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

    def _cancel_all(self) -> None:
        for job in tuple(self._jobs.values()):
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
            self._post(partial(job.timeout_callback, True, cast("float", job.soft_timeout_s)))

    def _hard_time_limit(self, job: Job) -> None:
        if job.cancelled:
            return
        if job.timeout_callback is not None:
            self._post(partial(job.timeout_callback, False, cast("float", job.timeout_s)))
        self._cancel(job)

    # -- size --------------------------------------------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        """Make room for `n` more jobs at a time."""
        self.limit += n
        self._semaphore.initial_value += n
        for _ in range(n):
            # One by one: kombu's `grow(n)` adds each new slot twice where requests are waiting.
            self._semaphore.release()

    def shrink(self, n: int = 1) -> None:
        """Take away `n` free places; those in use stay.

        Raises:
            ValueError: fewer than `n` places are free (one must stay); nothing changes, so that Celery's prefetch
                count, which follows a success only, stays equal to the limit. Its autoscaler tries again.
        """
        free = min(self._semaphore.value, self.limit - 1)
        if free < n:
            raise ValueError(f"Can't shrink the pool by {n}: {free} places are free")
        self.limit -= n
        self._semaphore.shrink(n)

    def flush(self) -> None:
        """After a lost connection the consumer has reset the semaphore; jobs that go on still hold their places."""
        self._semaphore.value = max(self.limit - len(self._jobs), 0)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "running": len(self._jobs),
            "free": self._semaphore.value,
            "started": self._started,
            "loop": type(self._loop).__module__.partition(".")[0],
            "loop-beat-age-s": round(time.monotonic() - self.beat_at, 3),
        }


def shutdown_has_begun() -> bool:
    """Whether a signal has asked for it. The hub acts on that after its next event, which may be a place set free."""
    stop, terminate = worker_state.should_stop, worker_state.should_terminate  # an exit code, of which 0 is one
    return not (stop is None or stop is False) or not (terminate is None or terminate is False)


def _current_limits(task: Any, request: dict[str, Any]) -> tuple[float | None, float | None]:
    """The soft and the hard limit of a job as `control time_limit` last set them.

    Celery passes those that the task had when the consumer started (celery/worker/request.py, create_request_cls), so
    that on its own pools the command changes nothing.
    """
    hard, soft = request.get("timelimit") or (None, None)
    return soft or task.soft_time_limit, hard or task.time_limit


def _worker_lost(exc: BaseException) -> ExceptionInfo:
    """What Celery calls a job whose process ended: SystemExit and the like, raised by the task's code."""
    try:
        if isinstance(exc, Exception):
            raise exc
        reraise(WorkerLostError, WorkerLostError(repr(exc)), exc.__traceback__)
    except Exception:  # noqa: BLE001 - raised just above, to give the record a traceback
        return ExceptionInfo()


def _survivable(returned: Any) -> Any:
    """What the tracer returned, without a MemoryError, which it has recorded as the job's failure already.

    Celery raises it again in the main process (celery/worker/request.py, on_failure) and leaves the message
    unacknowledged, so that the job would come back.
    """
    failed, info, runtime = returned
    if failed:
        forget_frames(info)
    if failed and isinstance(getattr(info.exception, "exc", info.exception), MemoryError):
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
