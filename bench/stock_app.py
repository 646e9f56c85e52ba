"""Stock Celery doing the same work, as well as it can: the threads pool, and one asyncio loop that all threads share.

`celery -A bench.stock_app worker -P threads`; BENCH_REDIS_URL and BENCH_PROVIDER_URL say where things are.
"""

from __future__ import annotations

import asyncio
import os
import threading
from functools import lru_cache
from typing import Any

import aiohttp
import uvloop
from celery import Celery

__all__ = ["app", "chat"]

URL = os.environ.get("BENCH_REDIS_URL", "redis://localhost:6379/0")

app = Celery("stock", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    # One backend for all threads: with one for each, the same work costs a quarter more.
    result_backend_thread_safe=True,
    # redis-py limits a pool to 100 connections unless told otherwise.
    redis_max_connections=2_000,
    broker_pool_limit=600,
)


@lru_cache(maxsize=1)
def loop() -> asyncio.AbstractEventLoop:
    """The process's loop, in a thread of its own."""
    new = uvloop.new_event_loop()
    threading.Thread(target=new.run_forever, daemon=True).start()
    return new


@lru_cache(maxsize=1)
def _sessions() -> list[aiohttp.ClientSession]:
    return []


async def _post(request: dict[str, Any]) -> dict[str, Any]:
    sessions = _sessions()
    if not sessions:
        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    url = os.environ["BENCH_PROVIDER_URL"]
    async with sessions[0].post(f"{url}/chat/completions", json=request) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
    return answer


_starting = threading.Lock()


@app.task(name="stock.chat")  # type: ignore[untyped-decorator]  # Celery has no types
def chat(**request: Any) -> dict[str, Any]:
    """Answer a chat prompt with the provider's whole body."""
    with _starting:
        shared = loop()
    return asyncio.run_coroutine_threadsafe(_post(request), shared).result()
