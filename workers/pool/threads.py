"""Blocking calls of jobs, in threads: plain `def` tasks, and what Celery's tracer would block the loop with."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..redis.patience import patiently
from .greenlets import in_job, wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["in_thread", "offload", "offload_patiently", "task_threads"]

P = ParamSpec("P")
T = TypeVar("T")


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
    return wait(in_thread(_offload_threads, call, *args, **kwargs))


def offload_patiently(wanted: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `offload`; a job waits while Redis is away, because it may have been paid for (workers/redis/patience.py)."""
    if not in_job():
        return call(*args, **kwargs)
    return wait(patiently(lambda: in_thread(_offload_threads, call, *args, **kwargs), wanted))


def in_thread(executor: Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
    """Make a call in a thread, in the caller's context."""
    bound = functools.partial(copy_context().run, call, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(executor, bound)
