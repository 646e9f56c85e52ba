"""A job's way through a worker's pipeline to each wire format."""

from __future__ import annotations

from typing import Any

import pytest

from workers.pipeline.retry_policy import RetryPolicy
from workers.prompt.job import PromptJob

from .wires import dialect_of, provider_at

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def ask(simulate: Any, pipeline_to: Any) -> Any:
    """`result, simulator = await ask(wire, job)`: tried once, against the simulated provider."""

    async def one(wire: str, job: PromptJob, *, provider: dict[str, Any] | None = None, **options: Any) -> Any:
        simulator = await simulate(dialect=dialect_of(wire).name, **options)
        table = provider_at(simulator, wire, **(provider or {}))
        async with pipeline_to(simulator.url, provider=table, retry=ONCE) as pipeline:
            return await pipeline.run(job), simulator

    return one
