"""Equal prompts whose first model can't answer: the next is asked once, and under it the answer lies."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from config.catalog import Catalog
from workers.limiter import TooLargeForLimit
from workers.pipeline.retry_policy import RetryPolicy
from workers.providers.keyring import KeyRing

from .fleet import fleet_of

KEYS = KeyRing({name: [SecretStr("sk-canary-77aa")] for name in "ab"})


def body(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "How many?"}]}


@pytest.mark.parametrize("model", ["a", "auto"])
async def test_equal_prompts_ask_each_model_of_the_chain_once(
    server: Any, client: Any, pipeline_to: Any, simulate: Any, wait_until: Any, model: str
) -> None:
    a, b = await simulate("404", latency_ms=50), await simulate(latency_ms=100)
    price = {"input": 1, "output": 1, "date": "2026-01-01", "source": "a test"}
    made = Catalog.model_validate(
        {
            "providers": {name: {"base_url": each.url, "api_keys": ["KEY"]} for name, each in {"a": a, "b": b}.items()},
            "models": {"a": {"provider": "a", "fallbacks": ["b"]}, "b": {"provider": "b", "price": price}},
            "routes": {"auto": {"targets": ["a", "b"], "choose": "fastest"}},
        }
    )
    async with fleet_of(client, server.url, pipeline_to, "", size=3, catalog=made, keys=KEYS) as fleet:
        for number in range(60):
            fleet.submit(f"job-{number}", body(model))
        await wait_until(lambda: len(fleet.results) == 60, "all are answered")
        results = list(fleet.results.values())
        assert {(each.ok, each.answered_by) for each in results} == {(True, "b/b")}
        assert b.stats()["calls"] == 1
        assert a.stats()["calls"] <= 3, "who heard that a can't answer asks b"
        [paid] = [each for each in results if not each.cached]
        assert {each.saved_usd for each in results if each.cached} == {paid.cost_usd}
        fleet.submit("later", body("b"))
        await wait_until(lambda: "later" in fleet.results, "it is answered")
        assert fleet.results["later"].cached, "the answer lies under the model that gave it"


def two(a: Any, b: Any) -> Catalog:
    """`a`, of which an answer takes half a second at most, and behind it `b`."""
    return Catalog.model_validate(
        {
            "providers": {name: {"base_url": each.url, "api_keys": ["KEY"]} for name, each in {"a": a, "b": b}.items()},
            "models": {
                "a": {"provider": "a", "fallbacks": ["b"], "timeout": {"total_s": 0.5}},
                "b": {"provider": "b"},
            },
        }
    )


@pytest.mark.parametrize("kind", ["chat", "embed"])
@pytest.mark.parametrize(("fault", "of_a"), [("hang", 1), ("503", 3), ("empty", 3)])
async def test_equal_prompts_follow_the_first_to_its_next_model(
    server: Any, client: Any, pipeline_to: Any, simulate: Any, wait_until: Any, kind: str, fault: str, of_a: int
) -> None:
    """While it calls it, they neither call the first model, one after the other, nor the next one."""
    a, b = await simulate(fault), await simulate(latency_ms=300)
    asked = body("a") if kind == "chat" else {"model": "a", "input": "How many?"}
    retry = RetryPolicy(base_s=0.05)
    async with fleet_of(
        client, server.url, pipeline_to, "", size=3, catalog=two(a, b), keys=KEYS, retry=retry
    ) as fleet:
        for number in range(30):
            fleet.submit(f"job-{number}", asked, kind=kind)
        await wait_until(lambda: len(fleet.results) == 30, "all are answered")
        results = list(fleet.results.values())
    assert {(each.ok, each.answered_by) for each in results} == {(True, "b/b")}
    assert (a.stats()["calls"], b.stats()["calls"]) == (of_a, 1)
    assert sorted(each.attempts for each in results) == [0] * 29 + [of_a + 1]
    assert {str(each.failed_attempts[-1].next)[:2] for each in results} == {"b:"}
    assert sum(each.suspected_double_payment for each in results) <= 1, "who follows has paid nothing"


async def test_who_has_no_other_model_asks_this_one_again(
    server: Any, client: Any, pipeline_to: Any, simulate: Any, wait_until: Any
) -> None:
    a, b = await simulate("hang"), await simulate()
    async with fleet_of(client, server.url, pipeline_to, "", size=2, catalog=two(a, b), keys=KEYS) as fleet:
        fleet.submit("first", body("a"))
        await wait_until(lambda: a.stats()["calls"] == 1, "it is called")
        for number in range(5):
            fleet.submit(f"alone-{number}", body("a"), fallbacks=[])
        await wait_until(lambda: len(fleet.parked) == 5, "they wait for it")
        a.strike({})
        await wait_until(lambda: len(fleet.results) == 6, "all are answered")
        alone = [each for job_id, each in fleet.results.items() if job_id != "first"]
        assert fleet.results["first"].answered_by == "b/b"
        assert {(each.ok, each.answered_by) for each in alone} == {(True, "a/a")}
        assert sorted(each.attempts for each in alone) == [0, 0, 0, 0, 1]


async def test_a_request_above_a_models_limit_leads_all_on(
    server: Any, client: Any, pipeline_to: Any, simulate: Any, wait_until: Any, free_limits: Any
) -> None:
    a, b = await simulate(), await simulate()
    free_limits.raises = [TooLargeForLimit("tokens", cost=9_000, limit=100)]
    made = two(a, b)
    async with fleet_of(
        client, server.url, pipeline_to, "", size=2, catalog=made, keys=KEYS, limits=free_limits
    ) as fleet:
        for number in range(10):
            fleet.submit(f"job-{number}", body("a"))
        await wait_until(lambda: len(fleet.results) == 10, "all are answered")
        assert {each.answered_by for each in fleet.results.values()} == {"b/b"}
    assert (a.stats()["calls"], b.stats()["calls"]) == (0, 1)
