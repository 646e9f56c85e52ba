from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.system.faults.harness import RedisServer
from workers.telemetry.notices import notices

from .broker import Broker


@pytest.fixture(autouse=True)
def nothing_to_tell() -> None:
    """Other tests of this process may have left something."""
    notices.take()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    """An empty Redis."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def broker(client: Any) -> Broker:
    return Broker(client)
