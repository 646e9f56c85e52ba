"""A Celery app whose tasks may be coroutines: the base classes of app, task and AMQP."""

from __future__ import annotations

import asyncio
import functools
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from celery import Celery
from celery import Task as CeleryTask
from celery._state import get_current_task
from celery.app import amqp
from greenlet import getcurrent

from .greenlets import Cancellable, Interruptible, JobGreenlet, raised, wait
from .job_stack import JobStack
from .threads import in_thread, offload, offload_patiently, task_threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["AMQP", "App", "Task", "TaskCancelled"]

P = ParamSpec("P")
T = TypeVar("T")


class TaskCancelled(RuntimeError):
    """The task's own code cancelled it; nobody asked Celery to. Celery records it as a failure."""


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
        if not isinstance(cls.request_stack, JobStack):
            cls.request_stack = JobStack()


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
            return _wait_for_task(job, in_thread(task_threads, _outcome, function, *args, **kwargs))()
        if is_async and _is_eager():
            return _run_to_end(function(*args, **kwargs))
        return function(*args, **kwargs)

    return staticmethod(bridged) if is_static else bridged


def _outcome(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Call it, and return what gives its value. An asyncio future can't carry StopIteration: it would never be done."""
    try:
        value = function(*args, **kwargs)
    except StopIteration as exc:
        return functools.partial(raised, exc)
    return lambda: value


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


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


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

    @property
    def backend(self) -> Any:
        """As Celery's, which asks four times for each look; one that all threads may use is found at once."""
        return self._backend_cache or super().backend

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        return offload(super().send_task, *args, **kwargs)
