"""One HTTP exchange over a pooled connection of aiohttp's, with little around it.

aiohttp's `ClientSession.post` serves every use of HTTP: for each call it merges headers and parses the URL, makes a
request, a response, a payload and a writer, two timers, and before Python 3.12 a task that sends the body. A POST of
some kilobytes to an address that was posted to a moment ago needs none of that: its head is known but for three lines,
and it fits into the socket's buffer. What is hard about HTTP stays aiohttp's: the pool, DNS, TLS, the parser, chunks,
compression (docs/adr/0006-exchanges-over-aiohttps-connections.md).
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from .timeouts import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection

__all__ = ["Exchanges", "Response"]

MAX_BODY_BYTES = 48 * 1024
"""What a transport takes at once (asyncio's high-water mark is 64 KiB). To send more means to wait for the peer."""

_WRITE_WHOLE_BYTES = 1024 * 1024
_URLS = 256
_NOT_SHARED = frozenset({"Content-Length", "Content-Type"})
"""Each request has its own."""


class Response:
    """An answer whose head has been read. When all of it has come, the connection goes back to the pool."""

    __slots__ = ("_content", "_read_s", "_silences", "close", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        *,
        close: Callable[[], None],
        silences: Timeouts,
        read_s: float,
    ) -> None:
        self.status = status
        self.headers = headers
        self.close = close
        """Close the connection, unless the whole answer has come."""
        self._content = content
        self._silences = silences
        self._read_s = read_s

    async def read_some(self) -> bytes:
        """What has come of the body since the last time; waits for more if nothing has. Empty at its end.

        Raises `SocketTimeoutError` when nothing comes for `read_s` seconds.
        """
        if chunk := self._content.read_nowait():
            return chunk
        with self._silences.after(self._read_s):
            return await self._content.readany()

    def at_eof(self) -> bool:
        """Whether the whole body has been read."""
        return self._content.at_eof()


class Exchanges:
    """The POSTs of one session. Make it on the session's loop."""

    def __init__(self, session: aiohttp.ClientSession, *, max_header_bytes: int) -> None:
        self._session = session
        self._max_header_bytes = max_header_bytes
        self._silences = Timeouts(aiohttp.SocketTimeoutError)
        self._destination = lru_cache(maxsize=_URLS)(self._find_destination)

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        connect_s: float,
        read_s: float,
        proxy: str | None = None,
    ) -> Response:
        """Send a request and read the answer's head, of any status. Redirects are not followed.

        Raises `aiohttp.ClientError`, `aiohttp.http_exceptions.HttpProcessingError`, OSError, and ValueError for what
        can't be sent. Cancelling closes the connection.
        """
        limits = _client_timeout(connect_s, read_s)
        if proxy is None and (destination := self._direct(url, headers, body)) is not None:
            return await self._post(destination, headers, body, limits, read_s)
        response = await self._session.post(
            url, data=_payload(body), headers=headers, allow_redirects=False, proxy=proxy, timeout=limits
        )
        return Response(
            response.status,
            response.headers,
            response.content,
            close=response.close,
            silences=self._silences,
            read_s=read_s,
        )

    def _direct(self, url: str, headers: Mapping[str, str], body: bytes) -> _Destination | None:
        """Where this is a small request for a plain URL. Others the session sends, or refuses as it likes."""
        if len(body) > MAX_BODY_BYTES or not all(map(str.isprintable, headers.values())):  # no line's end in a header
            return None
        return self._destination(url)

    async def _post(
        self,
        destination: _Destination,
        headers: Mapping[str, str],
        body: bytes,
        limits: aiohttp.ClientTimeout,
        read_s: float,
    ) -> Response:
        connection, protocol = await self._connect(destination, limits)
        try:
            if protocol.transport is None or protocol.transport.is_closing():
                raise aiohttp.ClientConnectionResetError("the connection is closing")
            protocol.set_response_params(
                read_until_eof=True, max_line_size=self._max_header_bytes, max_field_size=self._max_header_bytes
            )
            protocol.transport.write(destination.message(headers, body))
            with self._silences.after(read_s):
                head, content = await protocol.read()
            while 100 <= head.code < 200 and head.code != 101:  # such as 103: the real answer follows
                with self._silences.after(read_s):
                    head, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        content.on_eof(connection.release)
        return Response(
            head.code, head.headers, content, close=connection.close, silences=self._silences, read_s=read_s
        )

    async def _connect(
        self, destination: _Destination, limits: aiohttp.ClientTimeout
    ) -> tuple[Connection, ResponseHandler]:
        connector = self._session.connector
        if connector is None:
            raise RuntimeError("Session is closed")
        while True:
            try:
                connection = await connector.connect(destination.request, traces=[], timeout=limits)
            except TimeoutError as late:
                raise aiohttp.ConnectionTimeoutError from late
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                return connection, protocol
            # On a connection from the pool something has come that nobody had asked for. It would be the next answer.
            connection.close()

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


@lru_cache(maxsize=256)
def _client_timeout(connect_s: float, read_s: float) -> aiohttp.ClientTimeout:
    # `connect` would count the wait for a free connection too. The total is our caller's, which is exact:
    # aiohttp rounds anything above 5 s up to a whole second.
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)


def _payload(body: bytes) -> bytes | BytesIO:
    # aiohttp warns that larger bytes block the loop, and writes a file-like body in pieces.
    return body if len(body) <= _WRITE_WHOLE_BYTES else BytesIO(body)
