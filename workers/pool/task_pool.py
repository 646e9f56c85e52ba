"""Celery's worker pool on one asyncio loop.

Two threads. The main thread is Celery's: consumer, hub, requests, acknowledgements. The loop's thread runs the jobs.
They hand work over in batches: jobs through an inbox that wakes the loop once, outcomes through an outbox that wakes
the hub once. No Celery callback runs on the loop's thread, because the hub has made Celery's locks dummies
(celery/worker/components.py, Hub._patch_thread_primitives).

    hub thread                                             loop thread
    apply_async ──▶ inbox ── call_soon_threadsafe ──▶ _start_jobs ──▶ asyncio task ──▶ greenlets.run_job
    _finish     ◀── outbox ◀── Bell ───────────────────────────────── _ended

Selected by `worker_pool = "workers.pool:TaskPool"`, so that a bare `celery -A workers worker` uses it.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections import ChainMap
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured
from celery.worker import state as worker_state

from . import places, shutdown
from .app import Task
from .aside import Aside
from .handover import Outbox
from .job import Job
from .job_loop import JobLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub
    from kombu.asynchronous.semaphore import LaxBoundedSemaphore

__all__ = ["TaskPool"]

logger = logging.getLogger("promptmill.pool")


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
        self._jobs: dict[int, Job] = {}
        self._outbox = Outbox()
        self._loop = JobLoop(self._outbox, on_end=self._finish)
        self.aside = Aside(self._loop, self._outbox)
        self._hub: Hub | None = None
        self._stopping = False
        self._started = 0

    @cached_property
    def _tasks(self) -> Any:
        # The app's own property takes a lock at each look.
        return self.app.tasks

    @property
    def beat_at(self) -> float:
        """When the loop was last known to be alive, on the monotonic clock; 0.0 before it started."""
        return self._loop.beat_at

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
        # One connection for each job that may be publishing: a job that waited for a free one would hold up the loop.
        self.app.conf.broker_pool_limit = max(self.app.conf.broker_pool_limit or 0, self.limit + 10)
        places.show(lambda: places.Places(len(self._jobs), self.limit, len(self._loop.inbox)))
        self._loop.start(self.app, threads=self.limit)

    def did_start_ok(self) -> bool:
        return self._loop.is_alive

    def register_with_event_loop(self, hub: Hub) -> None:
        """Have the hub hear of jobs that end. Celery calls it again after each reconnect, which resets the hub."""
        self._hub = hub
        self._outbox.attend(hub)

    def on_stop(self) -> None:
        """Warm shutdown: wait for the running jobs, with the hub ticking (acks, heartbeats), then close the loop."""
        if self._state != self.CLOSE or self._stopping:
            # From the SIGQUIT handler (celery/apps/worker.py, on_cold_shutdown), in the middle of whatever the main
            # thread was doing, perhaps inside the hub. `on_terminate`, or the warm stop below us, does the work.
            return
        self._stopping = True
        if self._hub is not None:
            self.register_with_event_loop(self._hub)  # a connection that was lost just now has reset the hub
        shutdown.finish(ChainMap[Any, Any](self._jobs, self.aside.under_way), cast("Hub", self._hub), self._outbox)
        self._close()

    def on_terminate(self) -> None:
        """Cold shutdown: cancel all jobs, give their clean-up a moment, deliver what had already ended."""
        self._loop.end_all(lambda: tuple(self._jobs.values()))
        shutdown.clean_up(ChainMap[Any, Any](self._jobs, self.aside.under_way), self._outbox)
        self._close()

    def _close(self) -> None:
        if self._loop.is_alive:
            self._loop.close()
            self._stopping = True

    # -- hub thread: jobs in, outcomes out ---------------------------------------------------------------------------

    def apply_async(
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
        """Take a job, or, while stopping, leave it: its message then goes back to the queue.

        Without the base class's debug line, which would write the prompt into the log.
        """
        if self._state != self.RUN or shutdown.has_begun():
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
        self._loop.inbox.put(job)
        return job

    def requests_to_start(self) -> list[Any]:
        """Celery's requests that wait for a free place. None while stopping: they are not started any more."""
        if self._state != self.RUN or shutdown.has_begun():
            return []
        return [args[0] for _, args, _ in self._semaphore._waiting if args]

    def withdraw(self) -> list[Any]:
        """Give up the jobs that the loop has not begun, because it is blocked. Returns Celery's requests of them."""
        waiting = self.requests_to_start()
        self._semaphore._waiting.clear()
        withdrawn = self._loop.withdraw()
        for job in withdrawn:
            del self._jobs[job.token]
            self._semaphore.release()
        begun = [request for request in worker_state.active_requests if request._apply_result is not None]
        return waiting + [request for request in begun if request._apply_result() in withdrawn]

    def what_blocks(self) -> str:
        """The task that keeps the loop from moving, and the line it is at. Never its arguments."""
        return self._loop.what_blocks(tuple(self._jobs.values()))

    def terminate_job(self, pid: int, signum: int | None = None) -> None:
        """End the job with this token, which Celery calls `worker_pid`.

        SIGUSR1 raises SoftTimeLimitExceeded in a job that has a soft time limit, as in Celery's prefork pool.
        """
        job = self._jobs.get(pid)
        if job is not None:
            self._loop.end(job, interrupt=signum == signal.SIGUSR1)

    def _finish(self, job: Job) -> None:
        self._jobs.pop(job.token, None)
        try:
            if job.outcome is not None and not job.cancelled:
                job.outcome()
        finally:
            job.outcome = None  # frames of an exception in it may hold the job
            self._semaphore.release()

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
            "loop": self._loop.kind,
            "loop-beat-age-s": round(time.monotonic() - self.beat_at, 3),
        }


def _current_limits(task: Any, request: dict[str, Any]) -> tuple[float | None, float | None]:
    """The soft and the hard limit of a job as `control time_limit` last set them.

    Celery passes those that the task had when the consumer started (celery/worker/request.py, create_request_cls), so
    that on its own pools the command changes nothing.
    """
    hard, soft = request.get("timelimit") or (None, None)
    return soft or task.soft_time_limit, hard or task.time_limit
