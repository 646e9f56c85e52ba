"""For all tests: a Redis of their own, and hypothesis, which judges the code, not the machine.

On a fresh machine its first use of text takes more than a second (a table of Unicode), which its health check would
call a slow test; and a busy machine is no reason to fail. `make check` tries a quarter of the examples.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.redis_server import RedisServer

settings.register_profile("promptmill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("promptmill"), max_examples=25)
settings.load_profile("promptmill")


def pytest_collection_finish() -> None:
    """Modules and tests are here to stay: a walk through them all is most of what a garbage collection takes."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may freeze, fill, configure or kill."""
    server = RedisServer(tmp_path)
    yield server
    server.close()
