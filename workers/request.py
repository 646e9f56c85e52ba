"""How the worker sees a job: Celery's request, which tells the broker that its job has begun."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import task_ready

__all__ = ["Postponed", "Request"]

HIDDEN = "(hidden)"


class Postponed(Ignore):  # type: ignore[misc]  # Celery publishes no types
    """Raised by a task that wants to be run again later, as if it had not been run: no state, no retry counted.

    Its message waits in Redis until `until_s` (epoch seconds, Redis's clock) and takes up no place in any worker.
    """

    def __init__(self, until_s: float) -> None:
        super().__init__(f"postponed until {until_s:.3f}")
        self.until_s = until_s

    def __reduce__(self) -> tuple[type[Postponed], tuple[float]]:
        return type(self), (self.until_s,)


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
        if self.is_prompt:
            # A stock producer puts the first kilobyte of the arguments into these headers.
            self._argsrepr = self._kwargsrepr = HIDDEN
            self._request_dict["argsrepr"] = self._request_dict["kwargsrepr"] = HIDDEN

    @property
    def is_prompt(self) -> bool:
        """Whether the task's arguments are private."""
        return bool(getattr(self.task, "is_prompt", False))

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
        leases = getattr(self.message.channel, "leases", None)
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):  # billiard's wrapping of what the tracer has caught
            error = error.exc
        if isinstance(error, Postponed) and leases is not None:
            task_ready(self)
            leases.delay(self.message.delivery_tag, int(error.until_s * 1000))
            return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
