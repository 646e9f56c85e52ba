"""The Celery app: `celery -A workers worker`, and `from workers import app` for tasks of your own."""

from __future__ import annotations

from .bridge import App
from .broker.heartbeat import Heartbeat

__all__ = ["app"]

app = App("promptmill")
app.config_from_object("config.celeryconfig")
app.steps["consumer"].add(Heartbeat)
