from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import pytest
import redis
from pydantic import SecretStr

from config.catalog import Catalog
from config.settings import Http as HttpSettings
from tests.support.raw_server import RawServer, http_reply, raw_servers
from tests.support.redis_server import RedisServer
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import wait_until_async
from workers.http.session import Http
from workers.limiter import CallSize, Cost, Forecast, Permit
from workers.limiter.heard.headers import wait_s
from workers.limiter.rate import Plan
from workers.pipeline.offers import Offers
from workers.pipeline.pipeline import Pipeline
from workers.pipeline.retry_policy import RetryPolicy
from workers.prompt.job import Options, PromptJob
from workers.providers.keyring import KeyRing
from workers.simulator import RunningSimulator, SimulatorOptions, start
from workers.telemetry.counts import counts

KEY = "sk-canary-4f1d9e77c0"
PROMPT = "the canary prompt 8c2a61"


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    """What an earlier test has counted is no news of this one: the counts belong to the process."""
    counts.take()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """An empty Redis, with its replies as bytes."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def clock() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def key() -> str:
    return KEY


@pytest.fixture
def prompt() -> str:
    return PROMPT


def make_catalog(url: str, **options: Any) -> Catalog:
    """One provider `p` at `url`; `options` are its model's (`timeout`, `price`), and under `provider` its own."""
    provider = options.pop("provider", {})
    model = {"provider": "p", **options}
    models = {"m": {**model, "upstream": "upstream-m"}, "e": {**model, "upstream": "upstream-e"}}
    return Catalog.model_validate(
        {"providers": {"p": {"base_url": url, "api_keys": ["P_KEY"], **provider}}, "models": models}
    )


@pytest.fixture
def catalog_at() -> Callable[..., Catalog]:
    return make_catalog


class FreeLimits:
    """Admits everything at once, the keys in turn."""

    def __init__(self) -> None:
        self.turn = 0
        self.asked: list[dict[str, Any]] = []
        self.settled: list[Any] = []
        self.refused: list[float | None] = []
        self.raises: list[BaseException | None] = []
        """For each request, in turn."""
        self.waits_s: dict[str, float] = {}
        self.outputs: dict[str, int] = {}
        """What is expected, by model."""

    plan = Plan()

    def estimate(self, model: Any, **size: Any) -> Cost:
        return Cost()

    def call_size(self, model: Any) -> CallSize:
        return CallSize(10_000_000, 4.0)

    def resize(self, permit: Permit, cost: Cost) -> None:
        """Nothing is counted."""

    def expected_wait_s(self, model: Any, keys: Sequence[Any], priority: Any = "normal") -> float:
        return self.waits_s.get(model.name, 0.0)

    def forecast(self, model: Any) -> Forecast:
        return Forecast(4.0, (1_000.0, 500.0, 5_000.0), self.outputs.get(model.name))

    def admit_free(self, model: Any, keys: Sequence[Any], **options: Any) -> None:
        """Something is limited."""

    async def admit(self, model: Any, keys: Sequence[Any], **options: Any) -> Permit:
        self.asked.append(options)
        if self.raises and (why := self.raises.pop(0)) is not None:
            raise why
        limiter: Any = self
        permit = Permit(limiter, Cost(), epoch=0)
        permit.key = keys[self.turn % len(keys)] if keys else None
        self.turn += 1
        return permit

    def settle(self, permit: Permit, usage: Any) -> None:
        self.settled.append(usage)

    def give_up(self, permit: Permit) -> None:
        self.settled.append("given up")

    def give_back(self, permit: Permit) -> None:
        self.settled.append("given back")

    def rate_limited(self, permit: Permit, asked_s: float | None, headers: Any) -> float | None:
        self.refused.append(asked_s)
        return wait_s(headers, 0.0) if asked_s is None else asked_s

    def observe(self, headers: Any) -> None:
        pass


@pytest.fixture
def free_limits() -> FreeLimits:
    return FreeLimits()


PipelineMaker = Callable[..., AbstractAsyncContextManager[Pipeline]]


@pytest.fixture
def pipeline_to(clock: VirtualTime) -> PipelineMaker:
    """`async with pipeline_to(url, ...) as pipeline`: on virtual time, with four attempts."""

    @asynccontextmanager
    async def make(
        url: str,
        *,
        http: dict[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        keys: KeyRing | None = None,
        limits: Any = None,
        park_after_s: float | None = None,
        patience_s: float = 3_600.0,
        offers: Offers | None = None,
        others: Any = None,
        answers: Any = None,
        cache_ttl_s: float | None = None,
        breakers: Any = None,
        pack_wait_s: float = 0.02,
        places: Any = lambda: (0, 1, 0),
        streams: Any = None,
        flex_policy: Any = None,
        real_time: bool = False,
        catalog: Catalog | None = None,
        **model: Any,
    ) -> AsyncIterator[Pipeline]:
        async with Http(HttpSettings(**(http or {}))) as session:
            yield Pipeline(
                catalog=catalog or make_catalog(url, **model),
                http=session,
                keys=keys or KeyRing({"p": [SecretStr(KEY)]}),
                limits=limits or cast("Any", FreeLimits()),
                park_after_s=park_after_s,
                patience_s=patience_s,
                retry=retry or RetryPolicy(),
                now=time.time if real_time else clock,
                sleep=asyncio.sleep if real_time else clock.sleep,
                rng=random.Random(1),
                offers=offers,
                others=others,
                answers=answers,
                cache_ttl_s=cache_ttl_s,
                breakers=breakers,
                pack_wait_s=pack_wait_s,
                places=places,
                streams=streams,
                flex=flex_policy,
            )

    return make


@pytest.fixture
def chat_job() -> Callable[..., PromptJob]:
    def make(job_id: str = "job-1", *, body: dict[str, Any] | None = None, **options: Any) -> PromptJob:
        default = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
        return PromptJob(job_id, "chat", "m", {**default, **(body or {})}, Options(**options))

    return make


@pytest.fixture
def embed_job() -> Callable[..., PromptJob]:
    def make(value: Any, **body: Any) -> PromptJob:
        return PromptJob("job-e", "embed", "e", {"model": "e", "input": value, **body})

    return make


@pytest.fixture
async def simulate() -> AsyncIterator[Callable[..., Awaitable[RunningSimulator]]]:
    """`simulator = await simulate("hang")`: answers at once, with that fault on each call."""
    running: list[RunningSimulator] = []

    async def run(fault: str | None = None, **options: Any) -> RunningSimulator:
        faults = {fault: 1.0} if fault else {}
        simulator = await start(SimulatorOptions(**{"latency_ms": 0, "faults": faults, **options}))
        running.append(simulator)
        return simulator

    yield run
    for simulator in running:
        await simulator.stop()


@pytest.fixture
async def raw_server() -> AsyncIterator[Callable[..., Awaitable[RawServer]]]:
    async with raw_servers() as serve:
        yield serve


@pytest.fixture
def reply() -> Callable[..., bytes]:
    return http_reply


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    return wait_until_async
