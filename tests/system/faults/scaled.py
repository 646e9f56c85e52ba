"""Promptmill's own app, with scaled leases, and nobody who receives Celery's signals of a task: answers in a worker's
memory take their short way.

The harness says through the environment: FAULTS_TRANSPORT_OPTIONS (JSON), FAULTS_CELERY (settings of Celery, JSON).
"""

from __future__ import annotations

import json
import os

from workers import app

__all__ = ["app"]

app.conf.broker_transport_options = {
    **app.conf.broker_transport_options,
    **json.loads(os.environ.get("FAULTS_TRANSPORT_OPTIONS", "{}")),
}
app.conf.update(json.loads(os.environ.get("FAULTS_CELERY", "{}")))
