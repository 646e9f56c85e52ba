"""Processes that `streams` measures with: a provider that streams, and a bare reader of it.

    python -m bench.streaming provider TOKENS TOKENS_PER_S --ready-fd FD
    python -m bench.streaming bare URL STREAMS

Each token of the provider is the time at which it was sent, in microseconds of the machine's steady clock, and a
space: whoever has it knows how old it is. The provider writes prebuilt bytes straight to the socket, one timer and one
write a token, so that the cores are left to what is measured. Answers begin at times of their own, as those of a model
do, and keep their schedule whatever was late before.

The bare reader is what the articles write, aiohttp's lines and orjson; it prints its CPU time and how old its tokens
were, in milliseconds, as one JSON object.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import sys
import time
from typing import Any, cast

import aiohttp
import orjson
import uvloop

from .workload import body

__all__ = ["now_us"]

FIRST_TOKEN_S = 1.0
"""A model's first token comes within this time, evenly: no two answers in step."""

HEAD = b'{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,"model":"bench",'
DELTA = (
    b'data: %b"choices":[{"index":0,"delta":{"content":"%%015d "},"logprobs":null,"finish_reason":null}],"usage":null}'
)
LAST = b'data: %b"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n'
USAGE = (
    b'data: %b"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
BEGIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY_BYTES = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def now_us() -> int:
    return time.monotonic_ns() // 1_000


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN = _chunk(DELTA % HEAD % 0 + b"\n\n").replace(b"%015d" % 0, b"%015d")
"""A whole chunk but for the token, whose length is always the same."""


class _Answers(asyncio.Protocol):
    """One connection: each request on it is answered with so many tokens, one after another."""

    def __init__(self, tokens: int, tokens_per_s: float) -> None:
        self._tokens = tokens
        self._every_s = 1 / tokens_per_s
        self._end = _chunk(LAST % HEAD + USAGE % (HEAD, tokens, tokens + 9)) + b"0\r\n\r\n"
        self._loop = asyncio.get_running_loop()
        self._heard = b""
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = 0.0
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, end, rest = self._heard.partition(b"\r\n\r\n")
        length = BODY_BYTES.search(head)
        if end and len(rest) >= (int(length[1]) if length else 0):
            self._heard = b""
            self._transport.write(BEGIN)
            self._left = self._tokens
            self._next_s = self._loop.time() + random.uniform(0, FIRST_TOKEN_S)
            self._timer = self._loop.call_at(self._next_s, self._send)

    def _send(self) -> None:
        self._transport.write(TOKEN % now_us())
        self._left -= 1
        if not self._left:
            self._transport.write(self._end)
            return
        self._next_s += self._every_s
        self._timer = self._loop.call_at(self._next_s, self._send)


async def serve(tokens: int, tokens_per_s: float, ready_fd: int) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Answers(tokens, tokens_per_s), "127.0.0.1", 0, backlog=1_024)
    port = listener.sockets[0].getsockname()[1]
    gc.freeze()
    with os.fdopen(ready_fd, "w") as ready:
        ready.write(f"http://127.0.0.1:{port}/v1")
    await listener.serve_forever()


async def read_bare(url: str, streams: int) -> dict[str, Any]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        cpu_s = time.process_time()
        ages = await asyncio.gather(*(_read_one(session, url, number) for number in range(streams)))
        return {"cpu_s": time.process_time() - cpu_s, "ages_ms": [age for each in ages for age in each]}


async def _read_one(session: aiohttp.ClientSession, url: str, number: int) -> list[float]:
    ages, text = [], []
    async with session.post(f"{url}/chat/completions", json={**body(number), "stream": True}) as response:
        async for line in response.content:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                choices = orjson.loads(line[6:])["choices"]
                if choices and (piece := choices[0]["delta"].get("content")):
                    text.append(piece)
                    ages.append((now_us() - int(piece)) / 1_000)
    return ages if "".join(text) else []


def main(what: str, *arguments: str) -> None:
    if what == "provider":
        uvloop.run(serve(int(arguments[0]), float(arguments[1]), int(arguments[3])))
    else:
        sys.stdout.write(json.dumps(uvloop.run(read_bare(arguments[0], int(arguments[1])))))


if __name__ == "__main__":
    main(*sys.argv[1:])
