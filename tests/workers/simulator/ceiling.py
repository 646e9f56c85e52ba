"""How many requests per second one core of the simulated provider serves.

    python -m tests.workers.simulator.ceiling [REQUESTS]

Starts `promptmill simulate` without latency and asks it from this process over 32 connections that are
kept alive. The figure is requests per second of the server's own CPU time, so that it holds on a busy machine;
the median of five rounds after one that warms up. It prints the rate by the clock too.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import cast
from urllib.parse import urlsplit

import psutil
import uvloop

from tests.support.listening import started

CONNECTIONS = 32
ROUNDS = 5
QUESTION = "Weng earns $12 an hour for babysitting. Yesterday she did 50 minutes. " * 6


class Asker(asyncio.Protocol):
    """Sends the next request as soon as the last is answered; a real HTTP client would be slower than the server."""

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank_line, body = self._received.partition(b"\r\n\r\n")
        if blank_line and len(body) >= _content_length(head):
            assert head.startswith(b"HTTP/1.1 200 "), head
            self._received = b""
            self._ask()

    def _ask(self) -> None:
        if (request := self._round.next_request()) is None:
            self._transport.close()
            self._round.leave()
        else:
            self._transport.write(request)


class Round:
    """One measured run of so many requests, each with a different question."""

    def __init__(self, requests: int) -> None:
        self._left = requests
        self._asking = CONNECTIONS
        self.over = asyncio.Event()

    def next_request(self) -> bytes | None:
        if self._left == 0:
            return None
        self._left -= 1
        message = {"role": "user", "content": f"Question {self._left}: {QUESTION}"}
        body = json.dumps({"model": "gpt-4o-mini", "messages": [message]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: simulator\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def leave(self) -> None:
        self._asking -= 1
        if self._asking == 0:
            self.over.set()


async def measure(server: psutil.Process, port: int, requests: int) -> tuple[float, float]:
    """Requests per second of the server's CPU time, and by the clock."""
    before, began_s = sum(server.cpu_times()[:2]), time.monotonic()
    round_ = Round(requests)
    for _ in range(CONNECTIONS):
        await asyncio.get_running_loop().create_connection(lambda: Asker(round_), "127.0.0.1", port)
    await asyncio.wait_for(round_.over.wait(), timeout=60)
    elapsed_s, cpu_s = time.monotonic() - began_s, sum(server.cpu_times()[:2]) - before
    return requests / cpu_s, requests / elapsed_s


async def main(requests: int) -> None:
    command = [sys.executable, "-m", "workers.cli", "simulate", "--latency-ms", "0", "--jitter", "0"]
    process, url = started(command, stderr=subprocess.DEVNULL)
    with process:
        port = urlsplit(url).port
        assert port is not None
        server = psutil.Process(process.pid)
        try:
            rounds = [await measure(server, port, requests) for _ in range(1 + ROUNDS)][1:]
        finally:
            process.terminate()
    per_core, by_clock = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    print(f"{per_core:,.0f} requests/s per core ({1e6 / per_core:.0f} us each), {by_clock:,.0f}/s by the clock")


def _content_length(head: bytes) -> int:
    lines = (line.partition(b":") for line in head.split(b"\r\n"))
    return next(int(value) for name, _, value in lines if name.lower() == b"content-length")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3_000))
