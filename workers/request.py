"""How the worker sees a job: Celery's request, which tells the broker that its job has begun."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request as CeleryRequest

__all__ = ["Request"]

HIDDEN = "(hidden)"


class Request(CeleryRequest):  # type: ignore[misc]  # Celery publishes no types
    """A request whose message knows whether its job was ever started: then its call may have been paid for.

    Of a task with `is_prompt = True` it shows no arguments in logs, events, Flower and `inspect`, and its job has
    a record (`tasks.keys.job`) from its start at the latest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
