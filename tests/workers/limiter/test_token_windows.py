"""Four processes at a provider that counts tokens strictly: the real scripts and limiters, in virtual time."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis

from config.catalog import Limits
from tasks.results import Usage
from tests.support.redis_server import RedisServer
from tests.support.thorough import thorough
from tests.support.virtual_time import run_virtually
from workers.limiter.estimate import Estimator
from workers.limiter.limiter import Limiter, LimiterOptions
from workers.limiter.rate import Plan, plan
from workers.limiter.shared.schedule import LimiterName, RedisSchedule
from workers.limiter.waiting.wait_queue import Waiter
from workers.simulator.limits import Allowance

TPM = 200_000
TIME_S, WARM_UP_S = 130.0, 5.0
PROCESSES, WAITERS = 4, 25
INPUT_TOKENS, MOST_OUTPUT_TOKENS = 100, 4_096


class VirtualSchedule(RedisSchedule):
    """The real scripts at the loop's time; the way to Redis takes some of it."""

    def __init__(self, client: redis.Redis, terms: Plan, rng: random.Random, **options: Any) -> None:
        super().__init__(cast("Any", None), LimiterName("p", "m", "k"), terms, **options)
        self._client = client
        self._rng = rng

    async def _run(self, script: Any, names: Sequence[str], arguments: Mapping[str, Any]) -> list[bytes]:
        await asyncio.sleep(self._rng.uniform(0.0004, 0.002))
        now = f"{1_790_000_000 + asyncio.get_running_loop().time():.6f}"
        # By its digest: sending and reading a script's text takes longer than running it.
        reply: Any = self._client.register_script(script.text)(names, [json.dumps({**arguments, "now": now})])
        await asyncio.sleep(self._rng.uniform(0.0004, 0.002))
        return list(reply)


@dataclass
class Provider:
    """Answers of log-normal length, all charged when a call arrives, in windows without mercy."""

    allowance: Allowance
    rng: random.Random
    used: int = 0
    refused: list[float] = field(default_factory=list)

    async def call(self, began_at: float) -> tuple[Usage, float | None]:
        """What it took, and Retry-After (s) where it was refused."""
        loop = asyncio.get_running_loop()
        usage = Usage(
            INPUT_TOKENS, max(1, min(MOST_OUTPUT_TOKENS, int(self.rng.lognormvariate(math.log(500) - 0.5, 1))))
        )
        await asyncio.sleep(self.rng.uniform(0, 0.01))
        since_s = loop.time() - began_at
        refusal = self.allowance.admit(loop.time(), tokens=usage.input_tokens + usage.output_tokens)
        if refusal is not None:
            self.refused.append(since_s)
            return usage, refusal.wait_s
        if since_s > WARM_UP_S:
            self.used += usage.input_tokens + usage.output_tokens
        await asyncio.sleep(self.rng.uniform(0.5, 1.5))
        return usage, None


async def two_minutes(client: redis.Redis, provider: Provider, algorithm: Any) -> None:
    loop = asyncio.get_running_loop()
    terms, began_at = plan(Limits(tpm=TPM, algorithm=algorithm)), loop.time()

    async def keep_asking(limiter: Limiter, estimator: Estimator) -> None:
        while True:
            cost = estimator.cost(input_chars=4 * INPUT_TOKENS, max_tokens=MOST_OUTPUT_TOKENS)
            permit = await limiter.admit(Waiter(cost, loop.create_future()))
            usage, retry_after_s = await provider.call(began_at)
            if retry_after_s is None:
                permit.settle(usage)
            else:
                permit.rate_limited(retry_after_s, {})

    limiters, waiters = [], []
    for number in range(PROCESSES):
        estimator, schedule = Estimator(), VirtualSchedule(client, terms, provider.rng)
        options = LimiterOptions(f"process {number}")
        limiter = Limiter(terms, schedule, options=options, estimator=estimator, now=loop.time)
        limiters.append(limiter)
        waiters += [asyncio.create_task(keep_asking(limiter, estimator)) for _ in range(WAITERS)]
    await asyncio.sleep(TIME_S)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    for limiter in limiters:
        await limiter.close()


@pytest.mark.parametrize(
    ("algorithm", "seed"), [("sliding", 0), thorough("fixed", 1), thorough("sliding", 1), thorough("fixed", 0)]
)
def test_nearly_all_tokens_are_used_and_none_too_many(redis_server: RedisServer, algorithm: Any, seed: int) -> None:
    """With a margin in place of the memory, 90 % were used and nearly each run was refused some."""
    rng = random.Random(seed)
    allowance = Allowance.of(algorithm=algorithm, rpm=None, tpm=TPM, phase_s=rng.uniform(0, 60))
    provider = Provider(allowance, rng)
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        run_virtually(two_minutes(client, provider, algorithm))
    assert provider.used / TPM * 60 / (TIME_S - WARM_UP_S) > 0.93
    assert provider.refused == []
