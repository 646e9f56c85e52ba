from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tasks import PromptQueue
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The shared server, empty."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
async def queue(redis_server: RedisServer) -> AsyncIterator[PromptQueue]:
    async with PromptQueue(redis_server.url) as queue:
        yield queue
