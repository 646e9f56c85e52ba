"""The Celery app: `celery -A workers worker`, and `from workers import app` for tasks of your own."""

from __future__ import annotations

from celery.signals import import_modules, setup_logging

from ..pool.app import App
from ..telemetry import logs
from .flower import refuse_open_flower, show_queue_lengths
from .lease_heartbeat import Heartbeat

__all__ = ["app"]

setup_logging.connect(logs.configure, weak=False)
import_modules.connect(refuse_open_flower, weak=False)
show_queue_lengths()

app = App("promptmill")
app.config_from_object("config.celeryconfig")
app.steps["consumer"].add(Heartbeat)
