"""The simulated provider as a process, and what it has served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from .processes import BenchError, python, serving
from .workload import MODEL

__all__ = ["Provider", "Served", "running_provider"]


@dataclass(frozen=True, slots=True)
class Served:
    """Calls since the last reset."""

    calls: int
    in_flight: int
    peak_in_flight: int


class Provider:
    """A running simulated provider."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._root = url.removesuffix("/v1")
        self._session = session

    async def reset(self) -> None:
        """Count from zero."""
        async with self._session.post(f"{self._root}/__reset") as response:
            response.raise_for_status()

    async def served(self) -> Served:
        stats = await self.stats()
        failed = {status: n for status, n in stats["by_status"].items() if status != "200"}
        if failed:
            raise BenchError(f"The provider did not answer all calls with 200: {failed}")
        return Served(stats["calls"], stats["in_flight"], stats["peak_in_flight"])

    async def refused(self) -> int:
        """Calls above its limit."""
        return int((await self.stats())["rate_limited"])

    async def stats(self) -> dict[str, Any]:
        """All totals."""
        async with self._session.get(f"{self._root}/__stats") as response:
            stats: dict[str, Any] = await response.json()
        return stats

    def catalogue(self) -> str:
        """The TOML that sends everything here."""
        return (
            f"[providers.bench]\nbase_url = {json.dumps(self.url)}\napi_keys = []\n\n"
            f'[models."{MODEL}"]\nprovider = "bench"\n'
        )


@asynccontextmanager
async def running_provider(
    directory: Path, *, latency_ms: float, rpm: int | None = None, options: Sequence[str] = ()
) -> AsyncIterator[Provider]:
    """Start one that answers each call after exactly `latency_ms`, and no more than `rpm` requests a minute.

    `options` are further ones of the simulated provider's.
    """
    command = python("workers.cli", "simulate", "--port", 0, "--latency-ms", latency_ms, "--jitter", 0)
    if rpm is not None:
        command += ["--rpm", str(rpm)]
    command += options
    log = directory / f"provider-{'free' if rpm is None else rpm}.log"
    async with serving(command, log=log) as (_, url), aiohttp.ClientSession() as session:
        yield Provider(url, session)
