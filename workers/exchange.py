"""One HTTP exchange over a pooled connection of aiohttp's, with little around it.

aiohttp's `ClientSession.post` serves every use of HTTP: for each call it merges headers and parses the URL, makes a
request, a response, a payload and a writer, and before Python 3.12 a task that sends the body. A POST of some
kilobytes to an address that was posted to a moment ago needs none of that: its head is known but for two lines, and it
fits into the socket. What is hard about HTTP stays aiohttp's: the pool, DNS, TLS, the parser, chunks, compression
(docs/adr/0006-exchanges-of-our-own.md).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.connector import Connection
    from multidict import CIMultiDictProxy

__all__ = ["Exchanges", "Response"]

MAX_BODY_BYTES = 48 * 1024
"""What a transport takes at once (asyncio's high-water mark is 64 KiB). To send more means to wait for the peer."""

_URLS = 256
_NOT_SHARED = frozenset({"Content-Length", "Content-Type"})
"""Each request has its own."""


class Response:
    """An answer whose head has been read. The connection goes back to the pool when `content` has been read whole."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self, connection: Connection, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader
    ) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        self.content = content

    def close(self) -> None:
        """Close the connection, unless the answer has been read whole."""
        self._connection.close()


class Exchanges:
    """The small direct POSTs of one session, over its connections and with its headers."""

    def __init__(self, session: aiohttp.ClientSession, *, max_header_bytes: int) -> None:
        self._session = session
        self._max_header_bytes = max_header_bytes
        self._destination = lru_cache(maxsize=_URLS)(self._find_destination)

    def can_send(self, url: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether this is a small POST to a plain http(s) URL. The session sends, or refuses, all others."""
        return (
            len(body) <= MAX_BODY_BYTES
            and all(map(str.isprintable, headers.values()))  # so that none can hold a line's end
            and self._destination(url) is not None
        )

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout: aiohttp.ClientTimeout
    ) -> Response:
        """Send a request for which `can_send` is true, and read the answer's head, of any status.

        Of `timeout`, `total` is ignored. Raises what `ClientSession.post` raises, and `HttpProcessingError` for an
        answer that is not HTTP. Cancelling closes the connection.
        """
        destination = self._destination(url)
        connector = self._session.connector
        if destination is None or connector is None:
            raise RuntimeError("Session is closed, or `can_send` was not asked")
        try:
            connection = await connector.connect(destination.request, traces=[], timeout=timeout)
        except TimeoutError as late:
            raise aiohttp.ConnectionTimeoutError from late
        try:
            return await self._exchange(connection, destination.message(headers, body), timeout.sock_read)
        except BaseException:
            connection.close()
            raise

    async def _exchange(self, connection: Connection, message: bytes, read_timeout_s: float | None) -> Response:
        protocol = connection.protocol
        assert protocol is not None
        if protocol.transport is None or protocol.transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection is closing")
        protocol.set_response_params(
            read_until_eof=True,
            read_timeout=read_timeout_s,
            max_line_size=self._max_header_bytes,
            max_field_size=self._max_header_bytes,
        )
        protocol.transport.write(message)
        protocol.start_timeout()
        head, content = await protocol.read()
        while 100 <= head.code < 200 and head.code != 101:  # an interim answer, such as 103: the real one follows
            head, content = await protocol.read()
        content.on_eof(connection.release)
        return Response(connection, head.code, head.headers, content)

    def _find_destination(self, url: str) -> _Destination | None:
        try:
            parsed = URL(url)
        except ValueError:
            return None
        if parsed.scheme not in {"http", "https"} or not parsed.raw_host or parsed.raw_user or parsed.raw_password:
            return None
        return _Destination(parsed, self._session)


class _Destination:
    """What all requests to one URL have in common."""

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self.request = aiohttp.ClientRequest("POST", url, headers=session.headers, session=session)
        """Knows the way there. It is never sent itself."""
        lines = [f"POST {url.raw_path_qs} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.request.headers.items() if name not in _NOT_SHARED]
        if session.connector is not None and session.connector.force_close:
            lines.append("Connection: close")
        self._head = "".join(f"{line}\r\n" for line in lines)

    def message(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """The whole request."""
        own = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"{self._head}{own}Content-Length: {len(body)}\r\n\r\n".encode() + body
