"""How the worker sees a job: Celery's request, which tells the broker that its job has begun."""

from __future__ import annotations

from celery.worker.request import Request as CeleryRequest

__all__ = ["Request"]


class Request(CeleryRequest):  # type: ignore[misc]  # Celery publishes no types
    """A request whose message knows whether its job was ever started: then its call may have been paid for."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        leases = getattr(self.message.channel, "leases", None)
        if leases is not None:
            leases.start(self.message.delivery_tag, self.id)
        super().on_accepted(pid, time_accepted)
