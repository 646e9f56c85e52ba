"""Real simulated providers on free ports, without latency unless a test asks for some."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from workers.simulator import RunningSimulator

Start = Callable[..., Awaitable[RunningSimulator]]


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
