"""Puts an answer on the wire: whole, in another's place, or broken in one of the ways of `faults`."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from email.utils import formatdate

from aiohttp import web
from aiohttp.web import BaseRequest, StreamResponse

from .answers import replies
from .faults import JSON_TYPE, Altered, Bomb, Broken, Flood, Instead
from .provider import EVENTS_TYPE, Answer, Plan

__all__ = ["deliver", "json_response"]

_DRIP_EVERY_S = 0.2
_PROMISED_TOO_MUCH_BYTES = 1_000
# SO_LINGER with a time of 0: closing sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Headers = Mapping[str, str]


async def deliver(request: BaseRequest, plan: Plan, *, request_id: Headers) -> StreamResponse:
    """Send what is planned. The connection may be gone afterwards.

    Raises `asyncio.CancelledError` as soon as the client goes away.
    """
    answer, headers = plan.answer, {**plan.headers, **request_id}
    match plan.fault:
        case Instead() as instead:
            return _instead(instead, headers=headers, streamed=answer.streamed)
        case Flood() as flood:
            return await _written(request, flood.pieces(), {**headers, "Content-Type": JSON_TYPE})
        case Bomb() as bomb:
            return json_response(bomb.body(), headers={**headers, "Content-Encoding": "gzip"})
        case Broken(way=way) if not (answer.streamed and way in _MIDSTREAM):
            return await _BREAKAGES[way](request, answer, {**headers, "Content-Type": answer.content_type})
        case Altered(header_bytes=size) if size:
            headers["X-Padding"] = "x" * size
    if answer.streamed:
        then = _MIDSTREAM[plan.fault.way] if isinstance(plan.fault, Broken) else _ended
        return await _events(request, answer, headers, spread_s=plan.spread_s, then=then)
    return json_response(answer.whole(), headers=headers)


def json_response(body: bytes, *, status: int = 200, headers: Headers | None = None) -> web.Response:
    """A response with this JSON."""
    return web.Response(status=status, body=body, headers={**(headers or {}), "Content-Type": JSON_TYPE})


def _instead(fault: Instead, *, headers: Headers, streamed: bool) -> web.Response:
    own = {**headers, **fault.headers, "Content-Type": fault.content_type}
    if fault.retry_date_s is not None:
        own["Retry-After"] = formatdate(time.time() + fault.retry_date_s, usegmt=True)
    body = fault.body
    if streamed and fault.status == 200 and fault.content_type == JSON_TYPE and body:
        own["Content-Type"] = EVENTS_TYPE
        body = replies.event(body)
    return web.Response(status=fault.status, body=body, headers=own)


async def _ended(request: BaseRequest) -> None:
    """The stream ends as a stream does."""


async def _cut(request: BaseRequest) -> None:
    _hang_up(request)


async def _stand_still(_request: BaseRequest) -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await never


_MIDSTREAM: Mapping[str, Callable[[BaseRequest], Awaitable[None]]] = {
    "stream-cut": _cut,
    "stream-hang": _stand_still,
    "stream-error": _ended,
}
"""What follows after the last piece of an answer that a fault has struck (`provider.Answer.struck`)."""


async def _events(
    request: BaseRequest,
    answer: Answer,
    headers: Headers,
    *,
    spread_s: float,
    then: Callable[[BaseRequest], Awaitable[None]],
) -> StreamResponse:
    response = web.StreamResponse(headers={**headers, "Content-Type": EVENTS_TYPE, "Cache-Control": "no-cache"})
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    began_s, every_s = loop.time(), spread_s / max(1, len(answer.pieces) - 1)
    for number, piece in enumerate(answer.pieces):
        early_s = began_s + number * every_s - loop.time()
        if early_s > 0:
            await asyncio.sleep(early_s)
        await response.write(piece)
    await then(request)
    return response


async def _written(request: BaseRequest, pieces: Iterable[bytes], headers: Headers) -> StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    return response


async def _hang(_request: BaseRequest, _answer: Answer, _headers: Headers) -> StreamResponse:
    never: asyncio.Future[StreamResponse] = asyncio.get_running_loop().create_future()
    return await never


async def _reset(request: BaseRequest, _answer: Answer, _headers: Headers) -> StreamResponse:
    if (transport := request.transport) is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    return _unsendable()


async def _close(request: BaseRequest, _answer: Answer, _headers: Headers) -> StreamResponse:
    _hang_up(request)
    return _unsendable()


async def _partial(request: BaseRequest, answer: Answer, headers: Headers) -> StreamResponse:
    body = answer.whole()
    promised = {"Content-Length": str(len(body) + _PROMISED_TOO_MUCH_BYTES)}
    response = await _written(request, [body], {**headers, **promised})
    _hang_up(request)
    return response


async def _chunk_cut(request: BaseRequest, answer: Answer, headers: Headers) -> StreamResponse:
    body = answer.whole()
    response = await _written(request, [body[: len(body) // 2]], headers)
    _hang_up(request)
    return response


async def _drip(request: BaseRequest, answer: Answer, headers: Headers) -> StreamResponse:
    body = answer.whole()
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    for offset in range(len(body)):
        await response.write(body[offset : offset + 1])
        await asyncio.sleep(_DRIP_EVERY_S)
    return response


_BREAKAGES: Mapping[str, Callable[[BaseRequest, Answer, Headers], Awaitable[StreamResponse]]] = {
    "hang": _hang,
    "reset": _reset,
    "close": _close,
    "partial": _partial,
    "chunk-cut": _chunk_cut,
    "drip": _drip,
    "stream-cut": _chunk_cut,
    "stream-hang": _hang,
    "stream-error": _close,
}


def _hang_up(request: BaseRequest) -> None:
    """Close the connection after what has been written; aiohttp then drops what it would add."""
    if request.transport is not None:
        request.transport.close()


def _unsendable() -> web.Response:
    """aiohttp wants a response from each handler; on a closed connection it goes nowhere."""
    return web.Response()
