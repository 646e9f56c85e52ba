"""Scenarios that run side by side.

Most of a scenario's time is spent waiting: for a process to start, for a lease to end. A test function with the
argument `world` is therefore begun together with the others, on one of a few threads; pytest then takes the outcomes in
its order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer

from .harness import Providers, World

SIDE_BY_SIDE = 4
"""Two processes more run the other tests of tests/system beside them."""


class Stage:
    """Runs scenarios on threads; their order is the collection's."""

    def __init__(self, directory: Path, items: list[pytest.Function]) -> None:
        self._directory = directory
        self.providers = Providers(directory)
        self.recorder = RedisServer(directory / "recorder")
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="scenario")
        self._outcomes: dict[str, Future[None]] = {
            item.nodeid: self._threads.submit(self._play, number, item) for number, item in enumerate(items)
        }

    def _play(self, number: int, item: pytest.Function) -> None:
        arguments = getattr(getattr(item, "callspec", None), "params", {})
        directory = self._directory / str(number)
        directory.mkdir()
        with World(directory, self.providers, self.recorder.url) as world:
            item.obj(world=world, **arguments)

    def outcome(self, item: pytest.Function) -> None:
        self._outcomes[item.nodeid].result()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self.providers.close()
        self.recorder.close()


def _is_scenario(item: pytest.Item) -> bool:
    return (
        isinstance(item, pytest.Function)
        and Path(__file__).parent in item.path.parents
        and "world" in inspect.signature(item.obj).parameters
    )


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and _is_scenario(item)]
    stage = Stage(tmp_path_factory.mktemp("faults"), items)
    yield stage
    stage.close()


@pytest.fixture
def world(stage: Stage) -> None:
    """Only asks for the stage: each scenario gets its world from there."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not _is_scenario(pyfuncitem):
        return None
    pyfuncitem._request.getfixturevalue("stage").outcome(pyfuncitem)
    return True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_scenario(item):
            # A scenario's own patience is shorter; the first to be asked for may wait for a loaded machine.
            item.add_marker(pytest.mark.timeout(240))
