from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.support.redis_server import RedisServer
from workers.pool.app import App
from workers.results.backend import Backend


@pytest.fixture
def app(server: RedisServer, client: redis.Redis) -> Iterator[App]:
    app = App("results", set_as_current=False)
    app.conf.update(
        broker_url=server.url,
        result_backend=f"workers.results:Backend+{server.url}",
        result_backend_thread_safe=True,
        result_compress_from_bytes=1_000,
    )
    yield app
    app.close()


@pytest.fixture
def backend(app: App) -> Backend:
    assert isinstance(app.backend, Backend)
    return app.backend


def stored(client: redis.Redis, job_id: str) -> Any:
    """The record as it stands, which is plain JSON."""
    raw = client.get(f"celery-task-meta-{job_id}")
    return None if raw is None else json.loads(raw)
