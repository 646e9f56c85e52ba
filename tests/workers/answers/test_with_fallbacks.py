"""Equal prompts whose first model can't answer: the next is asked once, and under it the answer lies."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from config.catalog import Catalog
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
