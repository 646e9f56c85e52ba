"""How the worker sees a job: Celery's request, which tells the broker that its job has begun."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from celery.app.task import Context
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import revoked as revoked_jobs
from celery.worker.state import task_ready

from .bridge import Postponed
from .broker.events import EventDispatcher
from .broker.messages import MARKS
from .broker.qos import Message

__all__ = ["Request"]

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
    a record (`tasks.keys.job`) from its start at the latest.
    """

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
        """As Celery's, which makes up the event of a task before it looks whether anybody wants it."""
        eventer = self._eventer
        if not isinstance(eventer, EventDispatcher) or eventer.sends("task"):
            super().send_event(type, **fields)

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

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `celery inspect` and Flower show."""
        shown: dict[str, Any] = super().info(safe=safe or self.is_prompt)
        return shown

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        leases = getattr(self.message.channel, "leases", None)
        if leases is not None:
            leases.start(self.message.delivery_tag, self.id, has_record=self.is_prompt)
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """As Celery's; a postponed job's message goes back to Redis, not off the queue."""
        channel = self.message.channel
        if isinstance(exc_info.exception, Postponed) and hasattr(channel, "leases"):
            task_ready(self)
            until_ms = int(exc_info.exception.until_s * 1000)
            channel.qos.delay(self.message.delivery_tag, until_ms)
            if exc_info.exception.for_others:
                channel.lookout.left()
                return None
            lane = self.message.headers.get("lane")
            if isinstance(lane, str):
                gap_ms = exc_info.exception.gap_s * 1000
                channel.leases.lanes.postponed(lane, until_ms, gap_ms=gap_ms, now_ms=channel.lookout.redis_ms)
            return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
