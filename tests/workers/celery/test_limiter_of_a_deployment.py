"""What a deployment configures of the limiter, through the composition root, the pipeline and a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from redis.asyncio import Redis

from tests.support.redis_server import RedisServer
from workers.celery.app import app
from workers.celery.runtime import current, lifespan
from workers.limiter import snapshot
from workers.simulator import RunningSimulator, SimulatorOptions, start
from workers.simulator.limits import Bucket

CATALOG = """
[providers.p]
base_url = "{url}"
api_keys = ["KEY_ONE", "KEY_TWO"]
organisation_limits = {{ {organisation} }}
[models.m]
provider = "p"
limits = {{ {limits} }}
"""


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def simulator() -> AsyncIterator[RunningSimulator]:
    running = await start(SimulatorOptions(latency_ms=5))
    yield running
    await running.stop()


@pytest.fixture
def deployment(deployment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two keys, and jobs that wait for their turn in the worker."""
    deployment.setenv("PROMPTMILL_LIMIT__PARK_AFTER_S", "60")
    deployment.setenv("KEY_ONE", "sk-one-4d1f")
    deployment.setenv("KEY_TWO", "sk-two-88e0")
    return deployment


def write_catalog(simulator: RunningSimulator, *, organisation: str, limits: str) -> None:
    Path("catalog.toml").write_text(CATALOG.format(url=simulator.url, organisation=organisation, limits=limits))


async def prompt(job_id: str, tenant: str = "t") -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": job_id}], "promptmill": {"tenant": tenant}}
    result = await current().handle("chat", job_id, [], body)
    assert result.ok, result.error
    return tenant


async def arrivals(simulator: RunningSimulator) -> list[float]:
    def read() -> Any:
        with urlopen(simulator.url.removesuffix("/v1") + "/__ledger") as reply:
            return json.load(reply)

    return sorted(call["time"] for call in (await asyncio.to_thread(read))["calls"])


async def test_two_keys_of_one_organisation_stay_under_its_limit(
    deployment: pytest.MonkeyPatch, simulator: RunningSimulator, client: Redis
) -> None:
    both = 'rpm = 600, algorithm = "bucket"'
    write_catalog(simulator, organisation=both, limits=both)
    async with lifespan(app):
        await asyncio.gather(*(prompt(f"job-{number}") for number in range(35)))
        views = await snapshot(client)
    bucket = Bucket(600, capacity=10)
    for at in await arrivals(simulator):
        assert bucket.wait_s(at, 1) == 0, "the organisation's provider would have answered 429"
        bucket.take(at, 1)
    assert len(views) == 2
    assert all(view.settled or view.used_last_minute["requests"] for view in views), "one key was not used"
    assert {round(view.organisation_permitted_per_minute["requests"]) for view in views} == {600}
    # A minute may have begun in the meantime, and what is older than one counts no more.
    assert all(view.organisation_used_last_minute["requests"] > 30 for view in views)


@pytest.mark.covers("catalog", "providers.organisation_limits")
async def test_an_organisation_s_limit_holds_for_keys_without_one(
    deployment: pytest.MonkeyPatch, simulator: RunningSimulator
) -> None:
    write_catalog(simulator, organisation='rpm = 600, algorithm = "bucket"', limits="")
    async with lifespan(app):
        await asyncio.gather(*(prompt(f"job-{number}") for number in range(20)))
    times = await arrivals(simulator)
    assert times[-1] - times[0] > 1.5


@pytest.mark.covers("setting", "limit.tenant_weights")
@pytest.mark.covers("option", "tenant")
async def test_tenants_take_turns_by_their_weights(deployment: pytest.MonkeyPatch, simulator: RunningSimulator) -> None:
    deployment.setenv("PROMPTMILL_LIMIT__TENANT_WEIGHTS", '{"web": 3, "batch": 1}')
    write_catalog(simulator, organisation="rpm = 6000", limits="rpm = 3000")
    done: list[str] = []

    async def one(tenant: str, number: int) -> None:
        done.append(await prompt(f"{tenant}-{number}", tenant))

    async with lifespan(app):
        await asyncio.gather(*(one(tenant, number) for number in range(60) for tenant in ("batch", "web")))
    # Each key has a line of its own, and the first of all goes before there is a line.
    assert Counter(done[:60])["web"] == pytest.approx(45, abs=3)
