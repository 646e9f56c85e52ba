"""Processes that `streams` measures with: a provider that streams, and a bare reader of it.

    python -m bench.streaming provider TOKENS TOKENS_PER_S
    python -m bench.streaming bare URL STREAMS

Each token of the provider is the time at which it was sent, in microseconds of the machine's steady clock, and a
space: whoever has it knows how old it is. The bare reader is what the articles write, aiohttp's lines and orjson; it
prints its CPU time and how old its tokens were, in milliseconds, as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import orjson
import uvloop
from aiohttp import web

from .workload import body

HEAD = b'{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,"model":"bench",'
DELTA = (
    b'data: %b"choices":[{"index":0,"delta":{"content":"%d "},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
LAST = b'data: %b"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n' % HEAD
USAGE = (
    b'data: %b"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)


def now_us() -> int:
    return time.monotonic_ns() // 1_000


async def serve(tokens: int, tokens_per_s: float) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number in range(tokens):
            await asyncio.sleep(max(0.0, began_s + number / tokens_per_s - loop.time()))
            await response.write(DELTA % (HEAD, now_us()))
        await response.write(LAST + USAGE % (HEAD, tokens, tokens + 9))
        return response

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(web.Server(answer, access_log=None), "127.0.0.1", 0, backlog=1_024)
    port = listener.sockets[0].getsockname()[1]
    sys.stdout.write(f"listening on http://127.0.0.1:{port}/v1\n")
    sys.stdout.flush()
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
        uvloop.run(serve(int(arguments[0]), float(arguments[1])))
    else:
        sys.stdout.write(json.dumps(uvloop.run(read_bare(arguments[0], int(arguments[1])))))


if __name__ == "__main__":
    main(*sys.argv[1:])
