"""Calls that jobs share, by a tier that the jobs ask for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .test_packing import DIMENSIONS, job

PRICE = {"input": 1, "priority": 2, "date": "2026-01-01", "source": "a test"}


@pytest.mark.parametrize("jobs", [1, 20])
async def test_a_tier_that_is_asked_for_is_paid_for(pipeline_to: Any, simulate: Any, jobs: int) -> None:
    """By jobs that share a call too, and by one in several calls."""
    simulator = await simulate(embedding_dimensions=DIMENSIONS, latency_ms=20)
    async with pipeline_to(simulator.url, real_time=True, max_inputs=8, price=PRICE) as pipeline:
        asked = [job(n, ["one text", *["two"] * (20 // jobs)], body={"service_tier": "priority"}) for n in range(jobs)]
        results = await asyncio.gather(*map(pipeline.run, asked))
    assert {result.tier for result in results} == {"priority"}
    assert [result.cost_usd for result in results] == [
        pytest.approx(2e-6 * result.usage.input_tokens) for result in results
    ]


async def test_a_refused_call_is_paid_for_by_its_tier(pipeline_to: Any, simulate: Any) -> None:
    """What the inputs that were answered before have cost."""
    simulator = await simulate(embedding_dimensions=DIMENSIONS, poison="POISON")
    async with pipeline_to(simulator.url, real_time=True, max_inputs=2, price=PRICE) as pipeline:
        result = await pipeline.run(job(1, ["a", "b", "c", "POISON"], body={"service_tier": "priority"}))
    assert result.error.code == "bad_request"
    assert result.usage.input_tokens > 0
    assert result.cost_usd == pytest.approx(2e-6 * result.usage.input_tokens)
