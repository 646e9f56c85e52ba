"""What a breaker spares the jobs that another model can answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from pydantic import SecretStr

from config.catalog import Catalog
from tests.support.ports import free_port
from tests.support.waiting import wait_until_async
from workers.pipeline.retry_policy import RetryPolicy
from workers.prompt.job import Options, PromptJob
from workers.prompt.parked import Parked
from workers.providers.keyring import KeyRing

from .conftest import StartFleet, Worker

KEYS = KeyRing({name: [SecretStr("sk-canary-77aa")] for name in "ab"})
QUICK = RetryPolicy(base_s=0.01, cap_s=0.05)


def catalog(a: str, b: str) -> Catalog:
    providers = {"a": {"base_url": a, "api_keys": ["KEY"]}, "b": {"base_url": b, "api_keys": ["KEY"]}}
    return Catalog.model_validate(
        {"providers": providers, "models": {"a": {"provider": "a", "fallbacks": ["b"]}, "b": {"provider": "b"}}}
    )


def job(number: int = 0, **options: Any) -> PromptJob:
    body = {"model": "a", "messages": [{"role": "user", "content": "How many?"}]}
    return PromptJob(f"job-{number}", "chat", "a", body, Options(**options))


async def all_out(workers: list[Worker], model: str) -> None:
    def is_out() -> bool:
        return all(worker.breakers.health(model, model).outages for worker in workers)

    await wait_until_async(is_out, description=f"all know that {model} is out")


async def test_while_a_provider_is_out_it_is_not_asked(fleet: StartFleet, simulate: Any) -> None:
    a, b = await simulate("503"), await simulate()
    workers = await fleet("", count=4, catalog=catalog(a.url, b.url), keys=KEYS, retry=QUICK)
    first = [each for worker in workers for each in worker.start([job(n) for n in range(10)])]
    assert Counter(each.answered_by for each in await asyncio.gather(*first)) == {"b/b": 40}
    await all_out(workers, "a")
    before = a.stats()["calls"]
    then = [each for worker in workers for each in worker.start([job(n) for n in range(100)])]
    results = await asyncio.gather(*then)
    assert Counter(each.answered_by for each in results) == {"b/b": 400}
    assert a.stats()["calls"] - before <= 5, "one probe a period"
    passed = [each.failed_attempts[0] for each in results if each.attempts == 1]
    assert len(passed) >= 395
    assert {each.next for each in passed} == {"b: the provider of a failed"}


async def test_a_provider_that_cannot_be_reached_is_not_waited_for(fleet: StartFleet, simulate: Any) -> None:
    b = await simulate()
    [worker] = await fleet("", count=1, catalog=catalog(f"http://127.0.0.1:{free_port()}/v1", b.url), keys=KEYS)
    results = await asyncio.gather(*worker.start([job(n) for n in range(20)]))
    assert {(each.answered_by, each.attempts) for each in results} == {("b/b", 1)}
    assert {each.failed_attempts[0].next for each in results} == {"b: the provider of a can't be reached"}


@pytest.mark.parametrize("recovers", ["a", "b"])
async def test_where_all_are_out_the_first_that_works_answers(fleet: StartFleet, simulate: Any, recovers: str) -> None:
    both = {"a": await simulate("503"), "b": await simulate("503")}
    [worker] = await fleet(
        "", count=1, catalog=catalog(both["a"].url, both["b"].url), keys=KEYS, retry=QUICK, park_after_s=0.0
    )
    await asyncio.gather(*worker.start([job(n) for n in range(20)]), return_exceptions=True)
    await all_out([worker], "a")
    await all_out([worker], "b")
    called = {"attempts": 1, "postponed": 0, "may_be_paid": False, "paid_twice": False, "failed": []}
    at_b = {"names": ["a", "b"], "position": 1, "chosen": None}
    with pytest.raises(Parked) as caught:
        await worker.pipeline.run(job(), parked=json.dumps({**called, "chain": at_b}))
    both[recovers].strike({})

    async def comes_back() -> Any:
        try:
            return await worker.pipeline.run(job(), parked=caught.value.memory)
        except Parked as again:
            caught.value.memory = again.memory
            return None

    result = None
    while result is None:
        await asyncio.sleep(0.02)  # as long as it is parked
        result = await comes_back()
    assert result.answered_by == f"{recovers}/{recovers}"
    assert len(result.failed_attempts) <= 4, "what was passed again and again is told once"
