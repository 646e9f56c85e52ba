"""A bare asyncio + aiohttp loop, as the articles write it: no queue, nothing stored, nothing tried again.

    python -m bench.bare URL JOBS IN_FLIGHT [--session-per-call]

Prints its figures as one JSON object. Its CPU time counts from the first call to the last answer, after a warm-up.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import aiohttp
import psutil
import uvloop

from .workload import bodies, body

WARM_UP = 500


class Caller:
    """Sends bodies, so many at a time."""

    def __init__(self, url: str, in_flight: int, session: aiohttp.ClientSession, *, session_per_call: bool) -> None:
        self._url = f"{url}/chat/completions"
        self._free = asyncio.Semaphore(in_flight)
        self._session = session
        self._session_per_call = session_per_call

    async def ask(self, request: dict[str, Any]) -> str:
        async with self._free:
            if not self._session_per_call:
                return await self._post(self._session, request)
            async with aiohttp.ClientSession() as session:
                return await self._post(session, request)

    async def _post(self, session: aiohttp.ClientSession, request: dict[str, Any]) -> str:
        async with session.post(self._url, json=request) as response:
            response.raise_for_status()
            answer: str = (await response.json())["choices"][0]["message"]["content"]
        return answer

    async def ask_all(self, requests: Iterable[dict[str, Any]]) -> None:
        answers = await asyncio.gather(*map(self.ask, requests))
        if not all(answers):
            raise RuntimeError("An answer was empty.")


async def measure(url: str, jobs: int, in_flight: int, *, session_per_call: bool) -> dict[str, float]:
    """Ask so many prompts; the figures."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        caller = Caller(url, in_flight, session, session_per_call=session_per_call)
        await caller.ask_all(body(-number - 1) for number in range(max(WARM_UP, in_flight)))
        await _reset(session, url)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await caller.ask_all(bodies(jobs))
        return {
            "wall_s": time.perf_counter() - wall_s,
            "cpu_s": time.process_time() - cpu_s,
            "rss_bytes": psutil.Process().memory_info().rss,
        }


async def _reset(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(f"{url.removesuffix('/v1')}/__reset") as response:
        response.raise_for_status()


def main(arguments: list[str]) -> None:
    url, jobs, in_flight, *flags = arguments
    measured = measure(url, int(jobs), int(in_flight), session_per_call="--session-per-call" in flags)
    sys.stdout.write(json.dumps(uvloop.run(measured)))


if __name__ == "__main__":
    main(sys.argv[1:])
