"""A server that answers with ready-made bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat

__all__ = ["RawServer", "http_reply", "raw_servers"]


@dataclass
class RawServer:
    """A server that answers with ready-made bytes, and keeps what it was sent."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def raw_servers() -> AsyncIterator[Callable[..., Awaitable[RawServer]]]:
    """`server = await serve(b"HTTP/1.1 200 OK...")`; without bytes it never answers.

    Of several replies each is sent once, in turn, and the last from then on.
    """
    listeners: list[asyncio.Server] = []

    async def serve(*replies: bytes, close: bool = True) -> RawServer:
        server = RawServer(url="")
        turns = chain(replies, repeat(replies[-1] if replies else b""))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.connections += 1
            try:
                server.requests.append(await _read_request(reader))
                reply = next(turns)
                writer.write(reply)
                await writer.drain()
                if not close or not reply:
                    await reader.read()
                    server.disconnected.set()
            except (ConnectionError, asyncio.IncompleteReadError):
                server.disconnected.set()
            finally:
                writer.close()

        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        listeners.append(listener)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        return server

    yield serve
    for listener in listeners:
        listener.close()
        await listener.wait_closed()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    return head + await reader.readexactly(length)


def http_reply(status: int, body: bytes, *headers: str) -> bytes:
    """A whole HTTP response, after which the connection closes."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
