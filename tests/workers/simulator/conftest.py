"""Real simulated providers on free ports, without latency unless a test asks for some."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from workers.simulator import RunningSimulator, SimulatorOptions, start

Start = Callable[..., Awaitable[RunningSimulator]]


@pytest.fixture
async def simulate() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start_one(**options: Any) -> RunningSimulator:
            simulator = await start(SimulatorOptions(**{"latency_ms": 0, **options}))
            stack.push_async_callback(simulator.stop)
            return simulator

        yield start_one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


def question(text: str = "Tom has 12 apples and eats 3. How many are left?", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}


async def ledger(http: aiohttp.ClientSession, simulator: RunningSimulator) -> list[dict[str, Any]]:
    async with http.get(simulator.url.removesuffix("/v1") + "/__ledger") as response:
        calls: list[dict[str, Any]] = (await response.json())["calls"]
        return calls
