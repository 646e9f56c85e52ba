"""A plain Celery app over plain Redis, with nothing of ours: what a team may still have running beside us."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery

URL = os.environ["PROMPTMILL_REDIS_URL"]

app = Celery("stock", broker=URL, backend=URL)
app.conf.update(
    task_default_queue="prompts",
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get("FAULTS_TRANSPORT_OPTIONS", "{}")),
)
recorder = redis.Redis.from_url(os.environ["FAULTS_RECORDER"])


@app.task(name="tests.system.faults.app.nap", bind=True)
def nap(self: Any, seconds: float) -> str:
    recorder.rpush(f"starts:{self.request.id}", f"{time.monotonic():.3f}")
    time.sleep(seconds)
    return "rested"
