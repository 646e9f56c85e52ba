"""The app of the workers under fault: Promptmill's own, with scaled leases, and tasks that record their starts.

The harness says through the environment: FAULTS_RECORDER (a Redis that no fault hits), and what `scaled` reads.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import redis
from celery import signals

from .scaled import app

recorder = redis.Redis.from_url(os.environ["FAULTS_RECORDER"])


@app.task(bind=True)
async def nap(self: Any, seconds: float) -> str:
    """Sleep, and record the start."""
    recorder.rpush(f"starts:{self.request.id}", f"{time.monotonic():.3f}")
    await asyncio.sleep(seconds)
    return "rested"


if renamed := os.environ.get("FAULTS_RENAMED_TASK"):

    @app.task(name=renamed, bind=True, is_prompt=True)
    async def _renamed(self: Any, **body: Any) -> Any:
        from workers.celery.runtime import current

        return (await current().handle("chat", self.request.id, (), body)).to_dict()


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def count(items: list[Any]) -> int:
    return len(items)


@app.task(bind=True)
async def block(self: Any, seconds: float, secret: str) -> str:
    """Keep the loop from moving, and record the start."""
    recorder.rpush(f"starts:{self.request.id}", f"{time.monotonic():.3f}")
    time.sleep(seconds)
    return "moved"


@app.task
async def hold_up(seconds: float) -> None:
    """Its worker's main thread stands still when it receives it: nothing is taken or acknowledged."""


@signals.task_received.connect
def _hold_up(request: Any = None, **_: Any) -> None:
    if request.name == hold_up.name:
        recorder.rpush(f"starts:{request.id}", f"{time.monotonic():.3f}")
        time.sleep(request.args[0])


@signals.task_prerun.connect
def _die_of_poison(sender: Any = None, task_id: str = "", **_: Any) -> None:
    if sender is not None and sender.name == f"{__name__}.poison":
        recorder.rpush(f"starts:{task_id}", f"{time.monotonic():.3f}")
        os._exit(70)


@app.task
async def poison() -> None:
    """Its worker's process ends before it begins."""
