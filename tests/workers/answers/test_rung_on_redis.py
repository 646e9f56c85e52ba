"""Several workers' pipelines with one Redis: look-ups, leads, and what becomes of them."""

from __future__ import annotations

import time
from typing import Any

from .fleet import fleet_of

BODY = {"model": "m", "messages": [{"role": "user", "content": "How many?"}]}


async def test_a_thousand_equal_prompts_are_one_call(
    server: Any, client: Any, pipeline_to: Any, simulate: Any, wait_until: Any
) -> None:
    provider = await simulate(latency_ms=300)
    async with fleet_of(client, server.url, pipeline_to, provider.url, size=4) as fleet:
        for number in range(1_000):
            fleet.submit(f"job-{number}", BODY)
        t = time.time()
        await wait_until(lambda: len(fleet.results) == 1_000, "all are answered")
        print(time.time() - t, len(fleet.parked))
    results = fleet.results.values()
    assert provider.stats()["calls"] == 1
    assert {each.ok for each in results} == {True}
    assert sorted(each.cached for each in results) == [False] + [True] * 999
    assert len({each.text for each in results}) == 1
    assert len(fleet.parked) < 1_500
    print(client.keys("*"), client.zcard("pm:delayed:prompts"))
