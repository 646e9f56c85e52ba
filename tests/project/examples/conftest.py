from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tasks
from tests.support.redis_server import RedisServer
from tests.tasks.harness import FakeWorker

EXAMPLES = Path(tasks.__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


def answer(body: dict[str, Any]) -> str:
    question = body["messages"][0]["content"]
    if question == "fail":
        raise tasks.RateLimited("too many requests")
    return f"An answer to: {question}"


@pytest.fixture
def worker(redis_server: RedisServer) -> Iterator[None]:
    with FakeWorker(redis_server.url, answer):
        yield


@pytest.fixture
def example(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads an example by its file's name, pointed at the test's Redis."""
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", redis_server.url)
    for name in ("BROKER_URL", "RESULT_URL", "KEY_PREFIX"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
