"""Celery's event dispatcher, which does not hold up the worker while Redis is away."""

from __future__ import annotations

from typing import Any

from celery.events.dispatcher import EventDispatcher as CeleryEventDispatcher

__all__ = ["EventDispatcher"]

MOST_AT_ONCE = 256
"""Events of tasks are sent together when the hub's turn ends. Celery's limit of 24 made several messages of a turn."""


class EventDispatcher(CeleryEventDispatcher):  # type: ignore[misc]  # Celery publishes no types
    """Sends each event once. One that fails is buffered by Celery, and sent after the next reconnect.

    The worker's own heartbeat event asks for retries without end, and the hub's thread would make them: while Redis
    does not answer, nothing else would be noticed or mended there (celery/worker/heartbeat.py, `_send`).
    """

    def __init__(self, *args: Any, buffer_limit: int = MOST_AT_ONCE, **options: Any) -> None:
        super().__init__(*args, buffer_limit=buffer_limit, **options)

    def send(self, type: str, *, retry: bool = False, **fields: Any) -> Any:  # noqa: A002 - Celery's name
        if not self.sends(type.partition("-")[0]):
            return None  # for each job, unless somebody listens
        return super().send(type, **fields)

    def sends(self, group: str) -> bool:
        """Whether anybody asked for the events of a group: those of tasks, with `worker -E` or `enable_events` only."""
        return bool(self.enabled and (not self.groups or group in self.groups))
