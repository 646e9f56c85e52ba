"""The worker's heartbeat: it keeps the leases of running jobs, and hears of leases lost and jobs cancelled.

A step of Celery's consumer (docs.celeryq.dev, "Extensions and Bootsteps"). It beats on the hub's thread, and only while
the pool's loop is alive too: a worker that can't run its jobs must not keep them from others.
"""

from __future__ import annotations

import base64
import logging
import time
from typing import TYPE_CHECKING, Any

import orjson
from celery import bootsteps, signals
from celery.app.task import Context
from celery.worker import state as worker_state

from tasks import keys
from tasks.errors import JobFailed
from tasks.results import JobError, PromptResult

from .channel import Channel
from .leases import REJECTED, Grave

if TYPE_CHECKING:
    from kombu.asynchronous import Hub

__all__ = ["Heartbeat"]

logger = logging.getLogger("promptmill.broker")

BEATS_PER_LEASE = 4


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery publishes no types
    """Renews the consumer's leases while it has a connection, and while its last jobs are being finished."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._seen_ms = 0
        self._published: set[str] = set()
        super().__init__(consumer, **kwargs)

    def register_with_event_loop(self, consumer: Any, hub: Hub) -> None:
        """Start beating. Celery calls it for each connection, and cancels the timers of the one before."""
        channel = consumer.task_consumer.channel
        if not isinstance(channel, Channel):
            return
        channel.leases.on_buried = lambda grave: _record_buried(consumer.app, grave)
        every_s = channel.lease_s / BEATS_PER_LEASE
        self._beat(consumer, channel, every_s)
        hub.call_repeatedly(every_s, self._beat, consumer, channel, every_s)
        hub.call_repeatedly(1.0, channel.connection.cycle.check_replies)

    def _beat(self, consumer: Any, channel: Channel, every_s: float) -> None:
        tags = list(channel.leases.held) if _loop_is_alive(consumer.pool, channel.lease_s) else []
        self._publish_revoked(channel)
        channel.heartbeat(tags, self._seen_ms, every_s, lambda reply: self._on_beat(consumer, channel, reply))

    def _on_beat(self, consumer: Any, channel: Channel, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        channel.redis_ms, lost, given_back, self._seen_ms, cancelled = reply
        if given_back:
            logger.warning("%d messages of workers that have died are back in their queues", given_back)
        if lost:
            _abandon(consumer, channel, [tag.decode() for tag in lost])
        for job_id in cancelled:
            self._cancel(consumer, job_id.decode())

    def _cancel(self, consumer: Any, job_id: str) -> None:
        self._published.add(job_id)
        worker_state.revoked.add(job_id)
        request = worker_state.requests.get(job_id)
        if request is not None and request in worker_state.active_requests:
            request.terminate(consumer.pool, signal="TERM")

    def _publish_revoked(self, channel: Channel) -> None:
        """Have Redis remember what remote control revoked, for workers that start later."""
        if len(worker_state.revoked) == len(self._published):
            return
        news = {job_id for job_id in worker_state.revoked if job_id not in self._published}
        self._published = set(worker_state.revoked)
        if news and channel.redis_ms:
            pairs = [value for job_id in news for value in (channel.redis_ms, job_id)]
            channel.command(("ZADD", f"{channel.global_keyprefix}{keys.CANCELLED}", "NX", *pairs), _raise_errors)


def _raise_errors(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise reply


def _loop_is_alive(pool: Any, lease_s: float) -> bool:
    beat_at = getattr(pool, "beat_at", None)
    if beat_at is None or time.monotonic() - beat_at < lease_s:
        return True
    logger.error("The pool's loop has not moved for %.0f s; its messages are left to other workers", lease_s)
    return False


def _abandon(consumer: Any, channel: Channel, tags: list[str]) -> None:
    """End jobs whose messages other workers have by now. What they still store is refused (results.lua)."""
    lost = {lease.tag for lease in channel.leases.lose(tags)}
    logger.error("%d leases were lost: this worker, or its link to Redis, stood still for too long", len(lost))
    for request in tuple(worker_state.reserved_requests):
        if request.message.delivery_tag in lost:
            request.cancel(consumer.pool, emit_retry=False)


def _on_unknown_task(message: Any = None, name: str = "", **_: Any) -> None:
    _explain(message, "unknown_task", f"no worker knows the task {name!r}")


def _on_rejected_message(message: Any = None, exc: Exception | None = None, **_: Any) -> None:
    _explain(message, "invalid", f"it is not a valid task message: {exc!r}"[:500])


signals.task_unknown.connect(_on_unknown_task, weak=False)
signals.task_rejected.connect(_on_rejected_message, weak=False)


def _explain(message: Any, kind: str, reason: str) -> None:
    if isinstance(message.channel, Channel):
        message.channel.leases.condemn(message.delivery_tag, kind, reason)


def _record_buried(app: Any, grave: Grave) -> None:
    """Tell whoever waits for the job. Of messages that Celery itself refused, Celery has told them."""
    if grave.kind in {REJECTED, "unknown_task"}:
        return
    try:
        request = _context(grave.lease.raw)
    except (ValueError, KeyError, TypeError):
        return  # nobody can be waiting for a message without an id
    error = JobError("dead_letter", f"{grave.reason}; see `promptmill dead show {request.id}`")
    failure = JobFailed.of(PromptResult(id=request.id, status="failed", error=error))
    try:
        app.backend.mark_as_failure(request.id, failure, request=request)
    except Exception:
        logger.exception("The end of the buried job %s could not be recorded", request.id)


def _context(raw: bytes) -> Context:
    """What Celery knows of a message's task: the fields of `task.request`."""
    payload = orjson.loads(raw)
    headers = payload["headers"]
    try:
        embedded = orjson.loads(base64.b64decode(payload["body"]))[2]
    except (ValueError, LookupError, TypeError):
        embedded = {}
    return Context({**headers, **embedded, "id": headers["id"], "delivery_info": {}})
