"""Our place in Celery: which of its parts we put in place of its own, and how a worker is put together.

In reading order, with what each stands in for:

    app.py               the app, its task class and its signals         celery.Celery
    tasks.py             prompts.chat, prompts.embed and the other kinds'
    request.py           one message as a job                            celery.worker.request.Request
    fast_path.py         answers in memory, given before Celery's request   celery.worker.strategy
    consumer.py          the consumer, which never gives up on Redis     celery.worker.consumer.Consumer
    lease_heartbeat.py   a bootstep: leases renewed, cancels heard
    sweep.py             a bootstep's thread: cancelled jobs leave the delayed ones
    dead_letters.py      tells who waits for a message that is dead-lettered
    control.py           remote control's `revoke`                       celery.worker.control
    events.py            the event dispatcher                            celery.events.EventDispatcher
    flower.py            Flower on our transport
    runtime.py           the composition root of a worker process
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import app as app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # `celery -A workers.celery` and deployments' own imports find the app here; reading this package makes none.
    if name == "app":
        from .app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
