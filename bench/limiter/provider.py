"""The strict provider of a scenario, and its client.

It counts by `workers.simulator.limits`, in the benchmark's own process, over a loopback socket: HTTP would measure
HTTP. Each call reaches it with a random delay, because networks do not keep instants.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from workers.simulator.limits import WINDOW_S, Allowance, Bucket

from .scenarios import Scenario

__all__ = ["Call", "Client", "StrictProvider", "connected", "listening"]

HOST = "127.0.0.1"


class Call(NamedTuple):
    """One call as the provider saw it; `at` in seconds of its monotonic clock."""

    at: float
    process: int
    waiter: int
    tokens: int
    admitted: bool


class StrictProvider:
    """Counts, refuses with Retry-After, answers late. A call is one line: `number process waiter tokens`."""

    def __init__(self, scenario: Scenario) -> None:
        self.calls: list[Call] = []
        self.refused_at: float | None = None
        """When it refused the call that it was told to refuse."""
        self.latest_s = 0.0
        """The longest that a call had to wait for this process: where it is long, the machine was too busy to judge."""
        self._scenario = scenario
        self._random = random.Random(scenario.seed)
        self._allowance = _allowance(scenario, phase_s=self._random.uniform(0, WINDOW_S))
        self._refuses_next = False

    def refuse_next(self) -> None:
        """The next call gets a 429, whatever the limit says."""
        self._refuses_next = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while line := await reader.readline():
                due = loop.time() + self._random.uniform(0, self._scenario.jitter_s)
                loop.call_at(due, self._arrive, line, due, writer)
        writer.close()

    def _arrive(self, line: bytes, due: float, writer: asyncio.StreamWriter) -> None:
        number, process, waiter, tokens = map(int, line.split())
        self.latest_s = max(self.latest_s, asyncio.get_running_loop().time() - due)
        now = time.monotonic()
        if self._refuses_next:
            self._refuses_next, self.refused_at = False, now
            _answer(writer, f"{number} 429 {self._scenario.retry_after_s}\n")
            return
        refusal = self._allowance.admit(now, tokens=tokens)
        self.calls.append(Call(now, process, waiter, tokens, refusal is None))
        if refusal is not None:
            _answer(writer, f"{number} 429 {max(0.001, refusal.wait_s):.3f}\n")
            return
        latency_s = self._scenario.latency_s * self._random.uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(latency_s, _answer, writer, f"{number} 200 0\n")


def _allowance(scenario: Scenario, *, phase_s: float) -> Allowance:
    if scenario.algorithm != "fine":
        return Allowance.of(algorithm=scenario.algorithm, rpm=scenario.rpm, tpm=scenario.tpm, phase_s=phase_s)
    assert scenario.rpm is not None, "a bucket of 0.1 s counts requests"
    return Allowance(requests=Bucket(scenario.rpm, capacity=max(1.0, scenario.rpm / WINDOW_S / 10)))


def _answer(writer: asyncio.StreamWriter, line: str) -> None:
    if not writer.is_closing():
        writer.write(line.encode())


@asynccontextmanager
async def listening(provider: StrictProvider) -> AsyncIterator[int]:
    """Its port."""
    server = await asyncio.start_server(provider.serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


class Client:
    """All calls of one process over one connection."""

    def __init__(self, writer: asyncio.StreamWriter, process: int) -> None:
        self._writer = writer
        self._process = process
        self._number = 0
        self._answers: dict[int, asyncio.Future[tuple[int, float]]] = {}

    async def call(self, waiter: int, tokens: int) -> tuple[int, float]:
        """Status and Retry-After (s)."""
        self._number += 1
        answer: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        self._writer.write(f"{self._number} {self._process} {waiter} {tokens}\n".encode())
        return await answer

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hand out answers until the connection ends."""
        while line := await reader.readline():
            number, status, retry_after_s = line.split()
            answer = self._answers.pop(int(number))
            if not answer.done():
                answer.set_result((int(status), float(retry_after_s)))


@asynccontextmanager
async def connected(port: int, *, process: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HOST, port)
    client = Client(writer, process)
    listener = asyncio.create_task(client.listen(reader))
    try:
        yield client
    finally:
        listener.cancel()
        writer.close()
