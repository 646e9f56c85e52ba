"""Four processes at a provider whose limit of requests the catalogue does not state: real scripts, virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from config.catalog import Limits
from tasks.results import Usage
from tests.support.redis_server import RedisServer
from tests.support.thorough import thorough
from tests.support.virtual_time import run_virtually
from workers.limiter.estimate import Estimator
from workers.limiter.heard.headers import learned
from workers.limiter.limiter import Limiter, LimiterOptions
from workers.limiter.rate import Plan, plan
from workers.limiter.shared.schedule import Pause, PauseReport
from workers.limiter.waiting.wait_queue import Waiter
from workers.simulator.limits import Allowance, Refusal

from .test_token_windows import VirtualSchedule

PROCESSES, WAITERS = 4, 25


@dataclass
class Provider:
    """Counts strictly, and tells its limit in headers if it `tells`."""

    allowance: Allowance
    rng: random.Random
    tells: bool
    asks_for_a_wait: bool = True
    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    async def call(self) -> tuple[Refusal | None, dict[str, str]]:
        """Why it refused, and the headers."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.rng.uniform(0, 0.01))
        refusal = self.allowance.admit(loop.time(), tokens=0)
        headers = self.allowance.headers(loop.time()) if self.tells else {}
        (self.admitted if refusal is None else self.refused).append(loop.time())
        await asyncio.sleep(self.rng.uniform(0.01, 0.03) if refusal else self.rng.uniform(0.3, 0.9))
        return refusal, headers


class HeardSchedule(VirtualSchedule):
    """Its pauses are heard by all limiters soon, as by the channel."""

    hears: Sequence[Limiter] = ()

    async def pause(self, report: PauseReport) -> Pause:
        pause = await super().pause(report)
        for limiter in self.hears:
            loop = asyncio.get_running_loop()
            left_s = max(0.0, pause.until - pause.now)
            loop.call_later(self._rng.uniform(0.0004, 0.002), limiter.overhear_pause, pause.epoch, left_s)
        return pause


async def keep_asking(client: redis.Redis, provider: Provider, limits: Limits, minutes: int) -> None:
    loop = asyncio.get_running_loop()
    limiters: list[Limiter] = []

    def schedule_of(terms: Plan, **options: Any) -> HeardSchedule:
        schedule = HeardSchedule(client, terms, provider.rng, **options)
        schedule.hears = limiters
        return schedule

    def limiter_of(number: int) -> Limiter:
        def learn(told: Any) -> None:
            terms = plan(learned(limits, told))
            limiter.replan(terms, schedule_of(terms, learned=told))

        terms, options = plan(limits), LimiterOptions(f"process {number}")
        limiter = Limiter(
            terms, schedule_of(terms), options=options, estimator=Estimator(), now=loop.time, on_learned=learn
        )
        return limiter

    async def wait_and_call(limiter: Limiter) -> None:
        while True:
            permit = await limiter.admit(Waiter(Estimator().cost(input_chars=4), loop.create_future()))
            refusal, headers = await provider.call()
            permit.observe(headers)
            if refusal is None:
                permit.settle(Usage())
            else:
                permit.rate_limited(refusal.wait_s if provider.asks_for_a_wait else None, headers)

    limiters += [limiter_of(number) for number in range(PROCESSES)]
    waiters = [asyncio.create_task(wait_and_call(limiter)) for limiter in limiters for _ in range(WAITERS)]
    await asyncio.sleep(minutes * 60)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    for limiter in limiters:
        await limiter.close()


def play(
    server: RedisServer,
    algorithm: Any,
    limits: Limits,
    *,
    rpm: int,
    tells: bool,
    seed: int,
    minutes: int,
    asks_for_a_wait: bool = True,
) -> Provider:
    """A run; the provider's instants count from its beginning."""
    rng = random.Random(seed)
    allowance = Allowance.of(algorithm=algorithm, rpm=rpm, tpm=None, phase_s=rng.uniform(0, 60))
    provider = Provider(allowance, rng, tells, asks_for_a_wait)
    began_at = 0.0

    async def run(client: redis.Redis) -> None:
        nonlocal began_at
        began_at = asyncio.get_running_loop().time()
        await keep_asking(client, provider, limits, minutes)

    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        run_virtually(run(client))
    provider.admitted = [at - began_at for at in provider.admitted]
    provider.refused = [at - began_at for at in provider.refused]
    return provider


def of_minute(instants: list[float], minute: int) -> int:
    return sum(60 * minute <= at < 60 * (minute + 1) for at in instants)


@pytest.mark.parametrize("algorithm", [thorough("bucket"), thorough("sliding"), "fixed"])
def test_a_limit_that_is_stated_or_told_is_used_without_a_429(redis_server: RedisServer, algorithm: Any) -> None:
    rpm = 600
    for limits in (Limits(rpm=rpm, algorithm=algorithm), Limits()):
        provider = play(redis_server, algorithm, limits, rpm=rpm, tells=True, seed=1, minutes=2)
        assert len(provider.refused) <= (0 if limits.rpm else 1)
        assert of_minute(provider.admitted, 1) > 0.97 * rpm


@pytest.mark.parametrize(
    ("rpm", "minutes", "algorithm"),
    [
        (60, 7, "sliding"),
        (600, 4, "bucket"),
        (3_000, 2, "fixed"),
        thorough(60, 7, "bucket"),
        thorough(60, 7, "fixed"),
        thorough(600, 4, "sliding"),
        thorough(600, 4, "fixed"),
        thorough(3_000, 2, "bucket"),
        thorough(3_000, 2, "sliding"),
    ],
)
def test_a_limit_that_nobody_states_is_found_within_a_minute(
    redis_server: RedisServer, rpm: int, minutes: int, algorithm: Any
) -> None:
    """From then on at most 1 % of the calls are spent on looking for it, however slow they are."""
    provider = play(redis_server, algorithm, Limits(), rpm=rpm, tells=False, seed=1, minutes=minutes)
    assert provider.refused, "nothing was found out"
    later = [at for at in provider.refused if at >= 60]
    assert len(later) <= 0.01 * sum(at >= 60 for at in provider.admitted)
    for minute in range(1, minutes):
        assert of_minute(provider.admitted, minute) > 0.8 * rpm


@pytest.mark.parametrize("algorithm", [thorough("bucket"), "sliding", thorough("fixed")])
def test_a_provider_that_states_neither_limit_nor_wait(redis_server: RedisServer, algorithm: Any) -> None:
    """Where its window is full of a burst, it is not asked again and again until that is old enough."""
    provider = play(redis_server, algorithm, Limits(), rpm=60, tells=False, seed=1, minutes=7, asks_for_a_wait=False)
    later = [at for at in provider.refused if at >= 60]
    assert provider.refused, "nothing was found out"
    assert len(later) <= 0.01 * sum(at >= 60 for at in provider.admitted)
    assert sum(at >= 60 for at in provider.admitted) > 0.85 * 60 * 6
