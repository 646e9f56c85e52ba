"""Jobs whose answer is in this process's memory end without Celery's request, tracer and greenlet, and without a place.

Those are half of what such a job costs. It is Celery's extension point `Task.Strategy`: what becomes of a message that
has been taken. Whatever is not usual of a message or a worker goes Celery's way, which is the default strategy's; so
does a job whose result could not be stored. What others see is the same: the record, events, the log's lines, counts,
and that a message is acknowledged when its result is stored.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from celery import signals
from celery.app import trace
from celery.states import SUCCESS
from celery.worker import state as worker_state
from celery.worker.strategy import default
from celery.worker.strategy import logger as received_logger

from tasks.wire.kinds import KINDS

from ..broker.kombu.channel import Channel
from ..broker.messages import MARKS, READ
from ..pool import shutdown
from ..pool.task_pool import TaskPool
from ..results.backend import Backend
from ..results.entry import JSONResult
from .consumer import Consumer
from .request import HIDDEN
from .runtime import at_hand

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from ..pipeline.at_hand import AtHand, Read

__all__ = ["strategy"]

_UNUSUAL: Final = ("expires", "eta", "ignore_result", "stamped_headers")
"""Headers that ask for more than a result."""

_SIGNALS: Final = (signals.task_received, signals.task_prerun, signals.task_success, signals.task_postrun)
_receivers = attrgetter("receivers")
_KINDS: Final = {kind.task: name for name, kind in KINDS.items()}


class _Job(NamedTuple):
    """A message that is answered. Its first fields are what the backend asks of Celery's request."""

    task: str
    group: str | None
    parent_id: str | None
    properties: dict[str, Any]
    children: tuple[()]
    message: Any
    read: Read
    ack: Callable[..., Any]
    reject: Callable[..., Any]
    taken_s: float


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., None]:
    """As Celery's default, for prompt tasks. Called for each task and each connection."""
    usual: Callable[..., None] = default(task, app, consumer, **options)
    at_hand_now = at_hand()
    if (
        at_hand_now is None
        or not isinstance(consumer, Consumer)
        or not isinstance(consumer.pool, TaskPool)
        or not isinstance(task.backend, Backend)
        or task.backend.is_extended
        or task.track_started
        or task.ignore_result
    ):
        return usual
    fast, mark = _FastPath(task, consumer, usual, at_hand_now), at_hand_now.mark

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> None:
        # A job that asks for the cache has no lane (tasks/wire/request.py); most others have one, and are not searched.
        may_ask = not mark or message.headers.get("lane") is None
        if not (may_ask and _asks(message.body, mark) and fast.takes(message, ack, reject, callbacks)):
            usual(message, body, ack, reject, callbacks, **more)

    return handle


def _asks(body: Any, mark: bytes) -> bool:
    return isinstance(body, bytes) and mark in body


class _FastPath:
    """Of one task at one connection."""

    def __init__(self, task: Any, consumer: Any, usual: Callable[..., None], at_hand: AtHand) -> None:
        self._task = task
        self._consumer = consumer
        self._usual = usual
        self._at_hand = at_hand
        self._kind = _KINDS[task.name]
        self._logs = received_logger.isEnabledFor(logging.INFO)

    def takes(self, message: Any, ack: Any, reject: Any, callbacks: Any) -> bool:
        """Whether the job is answered here. One that was read in vain carries what was read in its marks."""
        marks, headers = message.properties.get(MARKS), message.headers
        if callbacks or marks or marks is None:
            return False
        try:
            args, kwargs, embedded = message.payload
        except Exception:  # noqa: BLE001 - whatever kombu's decoders raise, Celery meets it again
            return False
        read = None
        if not kwargs and len(args) == 1 and not any(embedded.values()):
            read = self._at_hand.read(self._kind, headers["id"], args, group=headers.get("group"))
        if read is None:
            return False
        if read.data is None:
            marks[READ] = read
            return False
        # Asked after the look-up, which it does not matter for: most jobs are not in memory.
        if self._is_unusual(headers) or not isinstance(message.channel, Channel):
            return False
        self._answer(
            _Job(
                self._task.name,
                headers.get("group"),
                headers.get("parent_id"),
                message.properties,
                (),
                message,
                read,
                ack,
                reject,
                time.monotonic(),
            )
        )
        return True

    def _is_unusual(self, headers: dict[str, Any]) -> bool:
        return (
            any(map(_receivers, _SIGNALS))
            or headers["id"] in worker_state.revoked
            or any(map(headers.get, _UNUSUAL))
            or bool(self._consumer.task_buckets[self._task.name])
            or shutdown.has_begun()
        )

    def _answer(self, job: _Job) -> None:
        if self._logs:
            context = {"id": job.read.job.id, "name": job.task, "args": HIDDEN, "kwargs": HIDDEN, "eta": None}
            received_logger.info(trace.LOG_RECEIVED, context, extra={"data": context})
        headers = job.message.headers
        self._tell(
            "task-received",
            job,
            name=job.task,
            args=HIDDEN,
            kwargs=HIDDEN,
            root_id=headers.get("root_id"),
            parent_id=job.parent_id,
            retries=headers.get("retries", 0),
            eta=None,
            expires=None,
        )
        self._tell("task-started", job)
        tag = job.message.delivery_tag
        job.message.channel.leases.answered.add(tag)
        self._consumer.pool.aside.put(tag, partial(self._store, job), partial(self._on_stored, job))

    def _store(self, job: _Job) -> Future[None]:
        """On the loop's thread."""
        result = self._at_hand.answer(job.read)
        backend = self._task.backend
        record = JSONResult(result.to_dict(), compressible=True)
        stored: Future[None] = backend.writer.put(backend.entry(result.id, record, SUCCESS, None, job))
        return stored

    def _on_stored(self, job: _Job, problem: BaseException | None) -> None:
        message, job_id = job.message, job.read.job.id
        leases, tag = message.channel.leases, message.delivery_tag
        leases.answered.discard(tag)
        if problem is not None:
            self._usual(message, None, job.ack, job.reject, ())
            return
        leases.set_result(tag, job_id, expected=True)
        worker_state.total_count[job.task] += 1
        worker_state.all_total_count[0] += 1
        job.ack(received_logger, self._consumer.connection_errors)
        took_s = time.monotonic() - job.taken_s
        self._tell("task-succeeded", job, result=HIDDEN, runtime=took_s)
        if self._logs:
            trace.info(
                trace.LOG_SUCCESS,
                {
                    "id": job_id,
                    "name": job.task,
                    "return_value": HIDDEN,
                    "runtime": took_s,
                    "args": HIDDEN,
                    "kwargs": HIDDEN,
                },
            )

    def _tell(self, event: str, job: _Job, **fields: Any) -> None:
        eventer = self._consumer.event_dispatcher
        if eventer and eventer.sends("task"):
            eventer.send(event, uuid=job.read.job.id, **fields)
