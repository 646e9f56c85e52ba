"""Workers that tests share, and a factory for those that a test ends itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .harness import HangingServer, RedisServer, Side, Workers, closing

if TYPE_CHECKING:
    from collections.abc import Iterator

CONCURRENCY = {"ours": 50, "threads": 8, "prefork": 3}


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    """One Redis for each kind of worker: published messages know no databases."""
    servers = {flavour: RedisServer(tmp_path_factory.mktemp(flavour)) for flavour in CONCURRENCY}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture(scope="session")
def shared_workers(
    redis_servers: dict[str, RedisServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Side]]:
    """One long-lived worker of each kind, started at the same time."""
    sides = {}
    factories = []
    for flavour, concurrency in CONCURRENCY.items():
        factories.append(Workers(redis_servers[flavour], tmp_path_factory.mktemp("shared")))
        sides[flavour] = factories[-1].launch(flavour, concurrency=concurrency)
    for side in sides.values():
        side.wait_ready()
    yield sides
    for factory in factories:
        factory.close()


@pytest.fixture
def ours(shared_workers: dict[str, Side]) -> Side:
    return shared_workers["ours"]


@pytest.fixture
def threads(shared_workers: dict[str, Side]) -> Side:
    return shared_workers["threads"]


@pytest.fixture
def prefork(shared_workers: dict[str, Side]) -> Side:
    return shared_workers["prefork"]


@pytest.fixture
def workers(redis_servers: dict[str, RedisServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Starts workers for this test alone."""
    yield from closing(Workers(redis_servers["ours"], tmp_path_factory.mktemp("worker")))


@pytest.fixture
def hanging() -> Iterator[HangingServer]:
    server = HangingServer()
    yield server
    server.close()
