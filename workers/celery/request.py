"""How the worker sees a job: Celery's request, which tells the broker that its job has begun."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

from celery.app.task import Context
from celery.exceptions import Ignore, Retry
from celery.worker.request import Request as CeleryRequest
from celery.worker.request import send_revoked
from celery.worker.state import revoked as revoked_jobs
from celery.worker.state import task_ready
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ..broker.kombu.qos import Message
from ..broker.messages import MARKS
from ..prompt.parked import Parked
from ..redis.clock import redis_clock
from ..results.endings import endings
from .events import EventDispatcher

__all__ = ["Request"]

logger = logging.getLogger("promptmill.broker")

REDIS_ERRORS = (RedisError, OSError, OperationalError)
"""They say nothing about a job: it waits."""

END_AGAIN_MS = 1_000
"""A job whose end Redis did not take is judged again after this."""

HIDDEN = "(hidden)"

CELERY_HEADERS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})
"""Not a producer's own (celery/app/task.py, `Context._get_custom_headers`)."""


@lru_cache(maxsize=256)
def _own_names(headers: tuple[str, ...]) -> tuple[str, ...]:
    # Most messages come from a few producers, each of which always sends the same headers.
    return tuple(name for name in headers if name not in CELERY_HEADERS)


class Request(CeleryRequest):  # type: ignore[misc]  # Celery publishes no types
    """A request whose message knows whether its job was ever started: then its call may have been paid for.

    Of a task with `is_prompt = True` it shows no arguments in logs, events, Flower and `inspect`, and its job has
    a record (`tasks.wire.redis_keys.job`) from its start at the latest.
    """

    _already_revoked: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.content_type is not None:
            # Celery's Request decodes the body, and the tracer decodes it again: hand it on as it is (5 us a job).
            self._body, self._content_type, self._content_encoding = self.message.payload, None, None
            if isinstance(self.message, Message):
                self.message.forget_body()
        headers = self._request_dict
        if "headers" not in headers and (own := _own_names(tuple(headers))):
            # What `task.request.headers` shows. Where there are some, as in our client's messages, the tracer does not
            # look for them among all that Celery knows (10 us a job).
            headers["headers"] = {name: headers[name] for name in own}
        marks = (self.message.properties or {}).get(MARKS)
        if marks and "eta" in marks:
            headers["eta"] = marks["eta"]
        if self.is_prompt:
            # A stock producer puts the first kilobyte of the arguments into these headers.
            self._argsrepr = self._kwargsrepr = HIDDEN
            headers["argsrepr"] = headers["kwargsrepr"] = HIDDEN

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """As Celery's, which makes up the event of a task before it looks whether anybody wants it.

        Celery names a job in `task-received` alone, and one that is cancelled or expired before it runs is never
        received: Flower would show an end without a name.
        """
        eventer = self._eventer
        if not isinstance(eventer, EventDispatcher) or eventer.sends("task"):
            if type == "task-revoked":
                fields |= self._named()
            super().send_event(type, **fields)

    def _named(self) -> dict[str, Any]:
        """What `task-received` says of a job besides its times."""
        return {
            "name": self.name,
            "args": self.argsrepr,
            "kwargs": self.kwargsrepr,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "retries": self.request_dict.get("retries", 0),
        }

    @property
    def is_prompt(self) -> bool:
        """Whether the task's arguments are private."""
        return bool(getattr(self._task, "is_prompt", False))

    def maybe_expire(self) -> Any:
        """As Celery's, by Redis's clock: this machine's may be hours ahead."""
        lookout = getattr(self.message.channel, "lookout", None)
        if self.expires is None or lookout is None:
            return super().maybe_expire()
        if not lookout.has_passed(self.expires.timestamp()):
            return None
        revoked_jobs.add(self.id)
        return True

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """As Celery's, which stores the end of a cancelled or expired job here, on the hub's thread, whatever it takes.

        The thread of `endings` stores it; until then the message stays this worker's. One whose end Redis does not
        take goes back to the queue, and whoever takes it next tries again.
        """
        leases = getattr(self.message.channel, "leases", None)
        if leases is None or not endings.is_attended:
            super()._announce_revoked(reason, terminated, signum, expired)
            return
        if self._already_revoked:
            return
        self._already_revoked = True
        task_ready(self)
        leases.ending.add(self.message.delivery_tag)
        store = partial(
            self.task.backend.mark_as_revoked,
            self.id,
            reason,
            request=self._context,
            store_result=self.store_errors,
        )
        endings.put(store, partial(self._on_end_stored, terminated, signum, expired))

    def _on_end_stored(self, terminated: bool, signum: Any, expired: bool, problem: Exception | None) -> None:
        channel, tag = self.message.channel, self.message.delivery_tag
        channel.leases.ending.discard(tag)
        channel.leases.set_result(tag, self.id, expected=self.store_errors)
        if isinstance(problem, REDIS_ERRORS):
            self._end_again(problem, suspected=False)  # a cancelled or expired job ends without another call
            return
        if problem is not None:
            # What another backend raises, only that backend knows. Trying again for ever would keep nobody informed.
            logger.error("The end of job %s could not be stored", self.id, exc_info=problem)
            channel.leases.condemn(tag, "undeliverable", f"its end could not be stored ({type(problem).__name__})")
        self.send_event("task-revoked", terminated=terminated, signum=signum, expired=expired)
        self.acknowledge()
        send_revoked(self.task, request=self._context, terminated=terminated, signum=signum, expired=expired)

    def forsake(self) -> None:
        """Never start: another worker has the message, or is to have it."""
        self._already_revoked = True
        task_ready(self)

    def _end_again(self, problem: Exception, *, suspected: bool) -> None:
        """Redis did not take the job's end: put the message back, for the next try."""
        channel = self.message.channel
        logger.warning("Redis did not take the end of job %s (%r); it is tried again", self.id, problem)
        due_ms = channel.lookout.redis_ms + END_AGAIN_MS
        channel.qos.delay(self.message.delivery_tag, due_ms, suspected=suspected)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """As Celery's, which stores a failure here, on the hub's thread."""
        with self._tried_again():
            super().on_timeout(soft, timeout)

    @contextmanager
    def _tried_again(self) -> Iterator[None]:
        """Without this, an end that Celery could not store here would leave a message that is held and not run."""
        try:
            yield
        except REDIS_ERRORS as exc:
            leases = getattr(self.message.channel, "leases", None)
            if leases is None:
                raise
            leases.recall(self.message.delivery_tag)  # Celery acknowledges a lost job before it stores the failure
            self._end_again(exc, suspected=True)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `celery inspect` and Flower show."""
        shown: dict[str, Any] = super().info(safe=safe or self.is_prompt)
        return shown

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        leases = getattr(self.message.channel, "leases", None)
        if leases is not None:
            has_result = self.task.acks_late and not self.ignore_result
            leases.start(self.message.delivery_tag, self.id, has_record=self.is_prompt, has_result=has_result)
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """As Celery's; a parked job's message goes back to Redis, not off the queue."""
        channel = self.message.channel
        if isinstance(exc_info.exception, Parked) and hasattr(channel, "leases"):
            self._park(exc_info.exception)
            return None
        if isinstance(exc_info.exception, (Ignore, Retry)) and hasattr(channel, "leases") and not self.is_prompt:
            # Only a prompt that had ended already is ignored: its result is there.
            channel.leases.set_result(self.message.delivery_tag, self.id, expected=False)
        with self._tried_again():
            return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _park(self, parked: Parked) -> None:
        channel = self.message.channel
        task_ready(self)
        until_ms = int(redis_clock.to_redis(parked.until_s) * 1000)
        channel.qos.delay(self.message.delivery_tag, until_ms, memory=parked.memory, follows=parked.follows)
        if parked.follows is not None:
            return
        if parked.for_others:
            channel.lookout.left()
            return
        lane = self.message.headers.get("lane")
        if isinstance(lane, str):
            gap_ms = parked.gap_s * 1000
            channel.leases.lanes.parked(lane, until_ms, gap_ms=gap_ms, now_ms=channel.lookout.redis_ms)


# Celery reads these thirty times a job, each through a property that is a Python function.
Request.message = property(attrgetter("_message"))
Request.task_id = property(attrgetter("id"))
Request.ignore_result = property(attrgetter("_ignore_result"))
for _name in (
    "argsrepr",
    "body",
    "content_encoding",
    "content_type",
    "eta",
    "expires",
    "kwargsrepr",
    "parent_id",
    "request_dict",
    "root_id",
    "task",
    "type",
):
    setattr(Request, _name, getattr(Request, f"_{_name}"))
