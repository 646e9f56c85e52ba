"""Celery's consumer, which never gives up on Redis and never writes a message's body into the log.

Selected by `worker_consumer = "workers.celery.consumer:Consumer"`.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.trace import build_tracer
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CeleryConsumer
from vine import promise

from ..broker.kombu.channel import Channel
from ..pool.tracer import PromptInfo

if TYPE_CHECKING:
    from ..broker.leases import DeadLetterKind

__all__ = ["Consumer"]

logger = logging.getLogger("promptmill.broker")

RECONNECT_S = 1.0
"""Pause between attempts to reach a Redis that is away. Celery's own pauses grow to 30 s."""


class Consumer(CeleryConsumer):  # type: ignore[misc]  # Celery publishes no types
    """What Celery logs of a message that it can't use holds the first kilobyte of the body, and so the prompt.

    Here such a message is buried with a reason of ours; the dead letters, which only `promptmill dead` shows, keep it.
    """

    def __init__(self, *args: Any, app: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, app=app, **kwargs)
        self.app.events.dispatcher_cls = "workers.celery.events:EventDispatcher"

    def update_strategies(self) -> None:
        """As Celery's, which makes a tracer for each task; that of a prompt task does not copy frames."""
        super().update_strategies()
        for name, task in self.app.tasks.items():
            if getattr(task, "is_prompt", False):
                task.__trace__ = build_tracer(name, task, self.app.loader, self.hostname, app=self.app, Info=PromptInfo)

    def create_task_handler(self, promise: Any = promise) -> Any:
        """As Celery's, with two plain calls for each message: only after a lost connection promises have followers."""

        def settlement(call: Any, args: tuple[Any, ...], on_error: Any) -> Any:
            if self._maximum_prefetch_restored:
                return partial(call, *args)
            return promise(call, args, on_error=on_error)

        return super().create_task_handler(settlement)

    def call_soon_ack(self, acknowledge: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge a message, or reject it: at once, where that is the hub's thread and writes to no socket.

        Celery has the hub do it in its next turn, which takes a promise, a lock and 3 % of a job's instructions.
        """
        if getattr(self.pool, "calls_back_on_hub", False) and isinstance(acknowledge.__self__.channel, Channel):
            return acknowledge(*args, **kwargs)
        return super().call_soon_ack(acknowledge, *args, **kwargs)

    def ensure_connected(self, conn: Any) -> Any:
        # Celery passes kombu no intervals, and has no setting for them.
        conn.ensure_connection = partial(
            conn.ensure_connection, interval_start=RECONNECT_S, interval_step=0, interval_max=RECONNECT_S
        )
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        with warnings.catch_warnings():
            # It says that jobs which go on through a reconnect are given to others too. Under leases they are not.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        if not isinstance(message.channel, Channel):
            super().on_unknown_task(body, message, exc)
            return
        name = exc.args[0] if exc.args else None
        _condemn(message, "unknown_task", f"no worker knows the task {name!r}")
        message.reject_log_error(logger, self.connection_errors)
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=message.headers.get("id"))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        if not isinstance(message.channel, Channel):
            super().on_invalid_task(body, message, exc)
            return
        _condemn(message, "invalid", f"it is not a valid task message ({type(exc).__name__})")
        message.reject_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        if not isinstance(message.channel, Channel):
            super().on_unknown_message(body, message)
            return
        _condemn(message, "invalid", "it names no task")
        message.reject_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        if not isinstance(message.channel, Channel):
            super().on_decode_error(message, exc)
            return
        _condemn(message, "unreadable", f"its body can't be decoded ({type(exc).__name__})")
        message.ack_log_error(logger, self.connection_errors)


def _condemn(message: Any, kind: DeadLetterKind, reason: str) -> None:
    message.channel.leases.condemn(message.delivery_tag, kind, reason[:500])
