"""The app of one worker under test: ours, or stock Celery with one of its own pools.

The harness says which through the environment: SEMANTICS_FLAVOUR, SEMANTICS_REDIS_URL, SEMANTICS_CONF (JSON).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from celery import Celery

from . import recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FLAVOUR = os.environ["SEMANTICS_FLAVOUR"]
REDIS_URL = os.environ["SEMANTICS_REDIS_URL"]
IS_OURS = FLAVOUR == "ours"

OURS = (
    "broker_transport",
    "broker_transport_options",
    "broker_channel_error_retry",
    "result_backend_thread_safe",
    "worker_pool",
    "worker_consumer",
    "worker_enable_prefetch_count_reduction",
)
"""Settings of Celery's that config/celeryconfig.py gives our own transport, pool and consumer."""


def _make_app() -> Celery:
    if not IS_OURS:
        stock = Celery("semantics")
        stock.conf.update(worker_pool=FLAVOUR, result_backend=REDIS_URL)
        return stock
    from config import celeryconfig
    from workers.celery.lease_heartbeat import Heartbeat
    from workers.pool.app import App

    ours = App("semantics")
    # What makes a worker ours, as the product sets it; the rest is the same on both sides.
    ours.conf.update({name: getattr(celeryconfig, name) for name in OURS})
    ours.conf.update(
        result_backend=f"workers.results:Backend+{REDIS_URL}",
        worker_lifespans=("workers.results:lifespan", f"{__name__}:lifespan"),
    )
    ours.steps["consumer"].add(Heartbeat)
    return ours


app = _make_app()
app.conf.update(
    broker_url=REDIS_URL,
    broker_connection_retry_on_startup=True,
    task_default_queue="work",
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=False,
    include=[f"{__package__}.bodies"],
)
app.conf.update(json.loads(os.environ.get("SEMANTICS_CONF", "{}")))


@asynccontextmanager
async def lifespan(_: Celery) -> AsyncIterator[None]:
    """Lives as long as the pool, and says so: entered, then left with the number of jobs that had ended by then."""
    if os.environ.get("SEMANTICS_BROKEN_LIFESPAN"):
        raise RuntimeError("the lifespan cannot open its database")
    asyncio.get_running_loop()
    recording.store.set("lifespan:entered", time.time())
    yield
    await asyncio.sleep(0)
    recording.store.set("lifespan:left", recording.store.get("ended") or 0)


class Recorded(recording.Handlers, app.Task):  # type: ignore[name-defined,misc]
    abstract = True


def task(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Register a task. On a stock pool, a coroutine function runs to its end in `asyncio.run`."""

    def register(body: Callable[..., Any]) -> Any:
        function = body
        if inspect.iscoroutinefunction(body) and not IS_OURS:
            function = _run_to_end(body)
        return app.task(**{"name": body.__name__, "bind": True, "base": Recorded, **options})(function)

    return register


def _run_to_end(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(body(*args, **kwargs))

    return run


def both(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Register a plain body twice: as `name`, a `def`, and as `name_async`, a coroutine that first lets others run."""

    def register(body: Callable[..., Any]) -> Any:
        @functools.wraps(body)
        async def body_async(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0.001)
            return body(*args, **kwargs)

        body_async.__name__ = f"{body.__name__}_async"
        task(**options)(body_async)
        return task(**options)(body)

    return register
