"""Between Celery, which is synchronous, and the pool's asyncio loop.

Celery's tracer (celery/app/trace.py) is one long synchronous function: signals, retries, callbacks, result, clean-up.
We run it unmodified inside a greenlet on the loop's thread. Where it calls the task, the greenlet hands the task's
coroutine to the loop and sleeps; the loop awaits it and wakes the greenlet with the value or the exception. The
technique is SQLAlchemy's (sqlalchemy/util/_concurrency_py3k.py).

    asyncio task ── switch ──▶ greenlet: Celery's tracer ── task.run() ──▶ wait(coroutine)
         ▲                                                                      │
         └──────────── awaits it on the loop, switches back with the value ◀────┘

Anything in the tracer that would block the loop's thread on Redis (publishing a chain's next step, a chord's counter,
an errback) goes through `offload`, which moves it to a thread and lets the loop go on.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from celery import Celery
from celery import Task as CeleryTask
from celery._state import _task_stack, get_current_task
from celery.app import amqp
from celery.utils.threads import LocalManager, LocalStack
from celery.utils.threads import get_ident as thread_ident
from greenlet import GreenletExit, getcurrent, greenlet

from ..redis.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

__all__ = [
    "AMQP",
    "App",
    "Interruptible",
    "Task",
    "TaskCancelled",
    "in_job",
    "offload",
    "offload_patiently",
    "run_job",
    "task_threads",
    "wait",
]

P = ParamSpec("P")
T = TypeVar("T")

_job_token: ContextVar[object | None] = ContextVar("promptmill_job", default=None)


class TaskCancelled(RuntimeError):
    """The task's own code cancelled it; nobody asked Celery to. Celery records it as a failure."""


def job_ident() -> object:
    """Whose stack `current_task` and `task.request` are: the job's, wherever its context went.

    A context variable follows the job into sub-tasks, `asyncio.gather` and `asyncio.to_thread`; a thread or greenlet
    id does not.
    """
    return _job_token.get() or thread_ident()


if not hasattr(LocalStack, "__release_local__"):
    raise ImportError(
        "USE_FAST_LOCALS is set: Celery then keeps `current_task` per thread, and jobs that share the pool's loop "
        "would read each other's. Unset USE_FAST_LOCALS."
    )
LocalManager([_task_stack], ident_func=job_ident)


class RequestStack:
    """`Task.request_stack`: Celery's LocalStack (celery/utils/threads.py), at a fifth of its cost.

    Celery looks at it eight times a job. Each job has a stack of its own, and outside of jobs each thread.
    """

    def __init__(self) -> None:
        self._stacks: dict[object, list[Any]] = {}

    def push(self, request: Any) -> None:
        self._stacks.setdefault(job_ident(), []).append(request)

    def pop(self) -> Any:
        """The topmost request, which is off the stack now; None where there was none."""
        owner = job_ident()
        if not (stack := self._stacks.get(owner)):
            return None
        request = stack.pop()
        if not stack:
            del self._stacks[owner]
        return request

    @property
    def top(self) -> Any:
        stack = self._stacks.get(_job_token.get() or thread_ident())  # `job_ident`, which is called most from here
        return stack[-1] if stack else None

    @property
    def stack(self) -> list[Any]:
        return self._stacks.get(job_ident(), [])

    def __len__(self) -> int:
        return len(self.stack)


class JobGreenlet(greenlet):
    """A greenlet in which Celery traces one job after another.

    A new one for each job would map 16 KB for its frames, and unmapping them stops the other threads' cores.
    """

    parent: Any  # never None
    job: Cancellable
    outcome: Callable[[], Any]
    """Gives the value, or raises the exception, of the call that has ended."""

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

    def end(self) -> Callable[[], Any]:
        """The outcome of the call that has ended; nothing of the job stays."""
        outcome = self.outcome
        del self.job, self.outcome
        self.gr_context = None
        return outcome


_ENDED = object()


def _serve() -> None:
    while True:
        call = cast("JobGreenlet", getcurrent()).parent.switch(_ENDED)
        cast("JobGreenlet", getcurrent()).outcome = _ending(call)
        del call  # and with it the job, while this waits for the next


def _ending(call: Callable[[], Any]) -> Callable[[], Any]:
    try:
        value = call()
    except GreenletExit:
        raise  # the greenlet is being thrown away
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the pool's to handle
        return functools.partial(_raise, exc)
    return lambda: value


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
    _job_token.set(token)
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
    outcome: Callable[[], T] = tracer.end()
    idle.append(tracer)
    try:
        return outcome()
    finally:
        del outcome  # it may hold an exception, whose traceback holds this frame


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


class TaskThreads(Executor):
    """Daemon threads for plain `def` tasks, made as needed: the pool's free places bound how many.

    The interpreter joins a ThreadPoolExecutor's threads when it ends, so that a cold shutdown, or a task that was
    terminated long ago, would keep the worker's process until the last of them is done.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._work.put((future, functools.partial(fn, *args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="promptmill-task", daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            _complete(*self._work.get())
            self._idle.release()


def _complete(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = call()
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the waiting job's to handle
        future.set_exception(exc)
    else:
        future.set_result(value)


task_threads = TaskThreads()
_offload_threads = ThreadPoolExecutor(8, thread_name_prefix="promptmill-offload")


def offload(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a blocking call: in a thread, in the job's context, when a job makes it; else right here."""
    if not in_job():
        return call(*args, **kwargs)
    return wait(_in_thread(_offload_threads, call, *args, **kwargs))


def offload_patiently(wanted: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `offload`; a job waits while Redis is away, because it may have been paid for (workers/redis/patience.py)."""
    if not in_job():
        return call(*args, **kwargs)
    return wait(patiently(lambda: _in_thread(_offload_threads, call, *args, **kwargs), wanted))


def _in_thread(executor: Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
    bound = functools.partial(copy_context().run, call, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(executor, bound)


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


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


class Task(CeleryTask):  # type: ignore[misc]  # Celery publishes no types
    """Base class of the app's tasks: `run` may be `async def`, and a plain `def` runs in a thread.

    Called directly, outside a worker, an `async def` task returns its coroutine: `await add(1, 2)`.
    """

    Request = "workers.celery.request:Request"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Here, so that Celery's autoretry wrapper (celery/app/autoretry.py) goes around ours.
        if "run" in cls.__dict__:
            cls.run = _bridged(cls.__dict__["run"])

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Give the task a request stack that knows jobs. Celery calls it when the task meets its app."""
        if not isinstance(cls.request_stack, RequestStack):
            cls.request_stack = RequestStack()


def _bridged(run: Any) -> Any:
    is_static = isinstance(run, staticmethod)
    function = run.__func__ if is_static else run
    is_async = inspect.iscoroutinefunction(function)

    @functools.wraps(function)
    def bridged(*args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if isinstance(current, JobGreenlet):
            job = current.job
            del current  # see `wait`
            if is_async:
                return _wait_for_task(job, function(*args, **kwargs))
            return _wait_for_task(job, _in_thread(task_threads, _outcome, function, *args, **kwargs))()
        if is_async and _is_eager():
            return _run_to_end(function(*args, **kwargs))
        return function(*args, **kwargs)

    return staticmethod(bridged) if is_static else bridged


def _outcome(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Call it, and return what gives its value. An asyncio future can't carry StopIteration: it would never be done."""
    try:
        value = function(*args, **kwargs)
    except StopIteration as exc:
        return functools.partial(_raise, exc)
    return lambda: value


def _raise(exc: BaseException) -> Any:
    try:
        raise exc
    finally:
        del exc  # its traceback holds this frame


def _wait_for_task(job: Cancellable, awaitable: Awaitable[T]) -> T:
    job.in_body = True
    try:
        value = wait(_interruptible(job, awaitable) if job.may_be_interrupted else awaitable)
    except asyncio.CancelledError:
        if job.cancelled:
            raise
        raise TaskCancelled("the task was cancelled by its own code (asyncio.CancelledError)") from None
    finally:
        job.in_body = False
    if job.cancelled:
        # The task swallowed its cancellation. Its state is recorded as revoked already; let nothing overwrite it.
        raise asyncio.CancelledError
    return value


def _interruptible(job: Cancellable, awaitable: Awaitable[T]) -> Awaitable[T]:
    coroutine = awaitable if inspect.iscoroutine(awaitable) else _coroutine(awaitable)
    return Interruptible(coroutine, job)


def _is_eager() -> bool:
    task = get_current_task()
    return bool(task is not None and task.request.is_eager)


def _run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run an eager task (`task.apply()`, `task_always_eager`) to its end, also from inside a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, coroutine).result()


class AMQP(amqp.AMQP):  # type: ignore[misc]  # Celery publishes no types
    """Publishes a finished job's callbacks and its chain's next step without blocking the loop."""

    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return offload_patiently("what follows a job", super()._retry_publish, publish, *args, **kwargs)


class App(Celery):  # type: ignore[misc]  # Celery publishes no types
    """A Celery app whose tasks may be coroutines, and whose jobs publish messages without blocking the loop."""

    task_cls = Task
    amqp_cls = AMQP

    @functools.cached_property
    def _uses_utc(self) -> bool:
        return bool(super().uses_utc_timezone())

    def uses_utc_timezone(self) -> bool:
        """As Celery's, which takes a lock for each message to read a time zone that never changes."""
        return self._uses_utc

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        return offload(super().send_task, *args, **kwargs)
