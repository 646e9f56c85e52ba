"""Between Celery, which is synchronous, and the pool's asyncio loop.

Celery's tracer (celery/app/trace.py) is one long synchronous function: signals, retries, callbacks, result, clean-up.
We run it unmodified inside a greenlet on the loop's thread. Where it calls the task, the greenlet hands the task's
coroutine to the loop and sleeps; the loop awaits it and wakes the greenlet with the value or the exception. The
technique is SQLAlchemy's (sqlalchemy/util/_concurrency_py3k.py).

    asyncio task ── switch ──▶ greenlet: Celery's tracer ── task.run() ──▶ wait(coroutine)
         ▲                                                                      │
         └──────────── awaits it on the loop, switches back with the value ◀────┘

Anything in the tracer that would block the loop's thread on Redis (publishing a chain's next step, a chord's counter,
an errback) goes through `threads.offload`, which moves it to a thread and lets the loop go on.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from .job_stack import job_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

__all__ = ["Cancellable", "Interruptible", "JobGreenlet", "in_job", "raised", "run_job", "wait"]

T = TypeVar("T")


class JobGreenlet(greenlet):
    """A greenlet in which Celery traces one job after another.

    A new one for each job would map 16 KB for its frames, and unmapping them stops the other threads' cores.
    """

    parent: Any  # never None
    job: Cancellable
    value: Any = None
    """What the call that has ended returned."""
    problem: BaseException | None = None
    """Or what it raised."""

    def __init__(self) -> None:
        # What a greenlet is started with, its C frame keeps for good: a job, or a method of the greenlet itself, which
        # then could never be freed. What is handed over later it does not keep.
        super().__init__(_serve)
        self.switch()

    def begin(self, call: Callable[[], Any], job: Cancellable) -> Any:
        """Begin a call. What this and `switch` return is what the call waits for, or `_ENDED`."""
        driver = getcurrent()
        self.parent = driver
        # One context for the driver and the tracer, so that what a signal handler sets, the task's code sees.
        self.gr_context = driver.gr_context
        self.job = job
        return self.switch(call)

    def end(self) -> tuple[Any, BaseException | None]:
        """The value of the call that has ended, or what it raised; nothing of the job stays."""
        ended = self.value, self.problem
        self.value = self.problem = None
        del self.job
        self.gr_context = None
        return ended


_ENDED = object()
_current: Callable[[], Any] = getcurrent


def _serve() -> None:
    while True:
        call = _current().parent.switch(_ENDED)
        try:
            _current().value = call()
        except GreenletExit:
            raise  # the greenlet is being thrown away
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the pool's to handle
            _current().problem = exc
        del call  # and with it the job, while this waits for the next


class _IdleGreenlets(threading.local):
    """A greenlet runs in one thread only. The last one used comes first: its memory is still in the caches."""

    def __init__(self) -> None:
        self.stack: list[JobGreenlet] = []


_idle = _IdleGreenlets()


class Cancellable:
    """What the bridge must know of a job. The pool's `Job` is one."""

    __slots__ = ("cancelled", "in_body", "interrupt", "may_be_interrupted")

    def __init__(self, *, may_be_interrupted: bool = False) -> None:
        self.may_be_interrupted = may_be_interrupted
        self.cancelled = False
        """Somebody asked for the job's end: a CancelledError is theirs, not the task's."""
        self.in_body = False
        """The task's own code is running, not the tracer's (which stores a result, say): it may be interrupted."""
        self.interrupt: Exception | None = None
        """An exception to be raised in the task's code in place of the next CancelledError (soft time limit)."""


async def run_job(job: Cancellable, token: object, call: Callable[[], T]) -> T:
    """Make a call that calls `wait` in a greenlet on this loop; return what it returns."""
    job_token.set(token)
    idle = _idle.stack
    tracer = idle.pop() if idle else JobGreenlet()
    value = tracer.begin(call, job)
    while value is not _ENDED:
        try:
            result = await value
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the waiting greenlet's to handle
            value = tracer.throw(type(exc), exc, exc.__traceback__)  # alone, it would lose the task's own frames
        else:
            value = tracer.switch(result)
    value, problem = tracer.end()
    idle.append(tracer)
    if problem is None:
        returned: T = value
        return returned
    try:
        raise problem
    finally:
        del problem  # its traceback holds this frame


def in_job() -> bool:
    """Whether this code is running in a job's greenlet, where `wait` works."""
    return isinstance(getcurrent(), JobGreenlet)


def wait(awaitable: Awaitable[T]) -> T:
    """Let the loop await something, and the other jobs run meanwhile. Only in a job's greenlet."""
    current = getcurrent()
    if type(current) is not JobGreenlet:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError("wait() was called outside a job; it runs only inside the pool's greenlets")
    to_the_loop: Callable[[Awaitable[T]], T] = current.parent.switch
    del current  # a frame that keeps its own greenlet could not be freed, nor the greenlet
    if (handled := sys.exception()) is None:
        return to_the_loop(awaitable)
    traceback = handled.__traceback__
    try:
        return to_the_loop(awaitable)
    finally:
        # Another job may have raised the same exception meanwhile (of a future that both awaited), and its frames
        # stand in the traceback now. Celery clears those frames (celery/app/trace.py, traceback_clear), which
        # would close the other job's coroutine.
        handled.__traceback__ = traceback


class Interruptible:
    """Await a coroutine so that an exception of our choice can be raised at the point where it waits.

    `asyncio.Task.cancel` can only raise CancelledError. When the job carries an `interrupt`, that is raised instead,
    once, and the task goes on if its code handles it. It costs a generator's step for each step of the coroutine, so
    only jobs that have a soft time limit are awaited through it.
    """

    __slots__ = ("coroutine", "job")

    def __init__(self, coroutine: Coroutine[Any, Any, T], job: Cancellable) -> None:
        self.coroutine = coroutine
        self.job = job

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = functools.partial(self.coroutine.send, None)
        if self.job.interrupt is not None:
            # The limit was over before the task's code began (the tracer was storing STARTED, say).
            resume = functools.partial(self.coroutine.throw, self.job.interrupt)
            self.job.interrupt = None
        while True:
            try:
                future = resume()
            except StopIteration as stop:
                return stop.value
            try:
                value = yield future
            except BaseException as exc:  # noqa: BLE001 - handed on to the coroutine, as `await` would
                resume = functools.partial(self.coroutine.throw, self._translated(exc))
            else:
                resume = functools.partial(self.coroutine.send, value)

    def _translated(self, exc: BaseException) -> BaseException:
        interrupt = self.job.interrupt
        if interrupt is None or not isinstance(exc, asyncio.CancelledError):
            return exc
        self.job.interrupt = None
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return interrupt


def raised(exc: BaseException) -> Any:
    """Raise an exception that is handed over as a value."""
    try:
        raise exc
    finally:
        del exc  # its traceback holds this frame
