"""One HTTP exchange over a pooled connection of aiohttp's, with little around it.

aiohttp's `ClientSession.post` serves every use of HTTP: for each call it merges headers and parses the URL, makes a
request, a response, a payload and a writer, two timers, and before Python 3.12 a task that sends the body. A POST of
some kilobytes to an address that was posted to a moment ago needs none of that: its head is known but for three lines,
and it fits into the socket's buffer. What is hard about HTTP stays aiohttp's: the pool, DNS, TLS, the parser, chunks,
compression (docs/adr/0006-exchanges-over-aiohttps-connections.md).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from .encoding import Decoder, decoder_of
from .timeouts import Silence, Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import AddrInfoType, Connection

    from config.catalog import Timeout

    from ..providers import ProviderRequest

__all__ = ["Exchanges", "Response", "reuse_traces", "watched_socket"]

MAX_BODY_BYTES = 48 * 1024
"""What a transport takes at once (asyncio's high-water mark is 64 KiB). To send more means to wait for the peer."""

IDLE_CLOSE_S = 1.0
"""How soon after a request its connection must end for an idle one that the server had closed before it could read the
request: one way there and back. A model needs longer, and so what ends later is a call that broke."""

_KEEPALIVE_IDLE_S = 30
_KEEPALIVE_EVERY_S = 10
_KEEPALIVE_PROBES = 3
_UNACKNOWLEDGED_MS = 60_000

_URLS = 256
_NOT_SHARED = frozenset({"Content-Length", "Content-Type"})
"""Each request has its own."""


def watched_socket(address: AddrInfoType) -> socket.socket:
    """A socket that notices within a minute that its peer is gone, as behind a NAT that has forgotten the connection.

    A model may think for many minutes in silence, so silence alone says nothing. Keep-alive probes an idle connection;
    what was sent and not acknowledged, it does not, hence the user time-out (RFC 5482).
    """
    family, kind, protocol, *_ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    return sock


def reuse_traces() -> list[aiohttp.TraceConfig]:
    """For the session, which does not say by itself whether a request went over a connection of the pool."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return [trace]


async def _note_reuse(_session: aiohttp.ClientSession, context: Any, _: aiohttp.TraceConnectionReuseconnParams) -> None:
    upload: _Upload = context.trace_request_ctx
    upload.is_reused = True


class Response:
    """An answer whose head has been read. When all of it has come, the connection goes back to the pool."""

    __slots__ = ("_content", "_decoder", "_read_s", "_silence", "_silences", "close", "headers", "status")

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
        self._decoder: Decoder | None = None
        self._silence: Silence | None = None

    def decode(self) -> None:
        """Unpack the body while it is read. Raises `Undecodable` for an encoding that nobody asked for."""
        self._decoder = decoder_of(self.headers.get("Content-Encoding"))

    @contextmanager
    def in_pieces(self) -> Iterator[None]:
        """Many small pieces are read within: one time-out for all silences, put off by each piece."""
        with self._silences.silence(self._read_s) as silence:
            self._silence = silence
            try:
                yield
            finally:
                self._silence = None

    async def read_some(self) -> bytes:
        """What has come of the body since the last time; waits for more if nothing has. Empty at its end.

        Raises `SocketTimeoutError` when nothing comes for `read_s` seconds, and `Undecodable`.
        """
        if self._decoder is None:
            return await self._read_raw()
        while not (piece := self._decoder.take()):
            if self._content.at_eof():
                if self._decoder.is_whole:
                    break
                raise aiohttp.ClientPayloadError("the encoded body was cut off")
            self._decoder.feed(await self._read_raw())
        return piece

    async def _read_raw(self) -> bytes:
        if (silence := self._silence) is not None:
            silence.heard_at = silence.now()
            return await self._content.readany()
        if chunk := self._content.read_nowait():
            return chunk
        with self._silences.after(self._read_s):
            return await self._content.readany()

    def at_eof(self) -> bool:
        """Whether the whole body has been read."""
        return self._content.at_eof() and (self._decoder is None or self._decoder.is_whole)


class Exchanges:
    """The POSTs of one session. Make it on the session's loop."""

    def __init__(self, session: aiohttp.ClientSession, *, max_header_bytes: int) -> None:
        self._session = session
        self._max_header_bytes = max_header_bytes
        self._loop = asyncio.get_running_loop()
        self._silences = Timeouts(aiohttp.SocketTimeoutError)
        self._destination = lru_cache(maxsize=_URLS)(self._find_destination)

    async def post(self, request: ProviderRequest, timeout: Timeout, proxy: str | None = None) -> Response:
        """Send a request and read the answer's head, of any status. Redirects are not followed.

        `timeout.read_s` limits a silence within the body; the wait for the head is our caller's to limit, for a model
        thinks first. A connection of the pool that the server had closed in the moment of sending is replaced by a new
        one.

        Raises `aiohttp.ClientError`, `aiohttp.http_exceptions.HttpProcessingError`, OSError, and ValueError for what
        can't be sent. Cancelling closes the connection.
        """
        limits, read_s = _client_timeout(timeout.connect_s, timeout.total_s), timeout.read_s
        try:
            if proxy is None and (destination := self._direct(request.url, request.headers, request.body)) is not None:
                connection, protocol = await self._connect(destination, limits)
                try:
                    return await self._exchange(destination, request, connection, protocol, read_s)
                except _ClosedBefore:
                    request.stage, request.was_resent = "connecting", True
                connection, protocol = await self._connect_anew(destination, limits)
                return await self._exchange(destination, request, connection, protocol, read_s)
            return await self._post_by_session(request, limits, read_s, proxy)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, asyncio.CancelledError):
            if request.stage == "connecting":
                self._forget_address(proxy or request.url)
            raise

    def _direct(self, url: str, headers: Mapping[str, str], body: bytes) -> _Destination | None:
        """Where this is a small request for a plain URL. Others the session sends, or refuses as it likes."""
        if len(body) > MAX_BODY_BYTES or not all(map(str.isprintable, headers.values())):  # no line's end in a header
            return None
        return self._destination(url)

    async def _exchange(
        self,
        destination: _Destination,
        request: ProviderRequest,
        connection: Connection,
        protocol: ResponseHandler,
        read_s: float,
    ) -> Response:
        was_unheard, sent_at = _was_used(protocol), self._loop.time()
        try:
            if protocol.transport is None or protocol.transport.is_closing():
                raise aiohttp.ClientConnectionResetError("the connection is closing")
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=self._max_header_bytes,
                max_field_size=self._max_header_bytes,
            )
            protocol.transport.write(destination.message(request.headers, request.body))
            request.stage = "sent"
            head, content = await protocol.read()
            was_unheard, protocol.was_used = False, True  # type: ignore[attr-defined]  # see `_was_used`
            while 100 <= head.code < 200 and head.code != 101:  # such as 103: the real answer follows
                head, content = await protocol.read()
        except BaseException as error:
            connection.close()
            if was_unheard and _is_idle_close(error, self._loop.time() - sent_at):
                raise _ClosedBefore from None
            raise
        content.on_eof(connection.release)
        return Response(
            head.code, head.headers, content, close=connection.close, silences=self._silences, read_s=read_s
        )

    async def _post_by_session(
        self, request: ProviderRequest, limits: aiohttp.ClientTimeout, read_s: float, proxy: str | None
    ) -> Response:
        upload = _Upload(request, self._loop)
        try:
            response = await self._post_upload(upload, limits, proxy)
        except aiohttp.ClientConnectionError as error:
            if not upload.is_reused or not _is_idle_close(error, upload.age_s()):
                raise
            response = None
        if response is None:
            request.stage, request.was_resent = "connecting", True
            if proxy is None and (destination := self._destination(request.url)) is not None:
                connection, _ = await self._connect_anew(destination, limits)
                connection.release()  # the session takes this one
            response = await self._post_upload(_Upload(request, self._loop), limits, proxy)
        return Response(
            response.status,
            response.headers,
            response.content,
            close=response.close,
            silences=self._silences,
            read_s=read_s,
        )

    async def _post_upload(
        self, upload: _Upload, limits: aiohttp.ClientTimeout, proxy: str | None
    ) -> aiohttp.ClientResponse:
        return await self._session.post(
            upload.request.url,
            data=upload,
            headers=upload.request.headers,
            allow_redirects=False,
            proxy=proxy,
            timeout=limits,
            trace_request_ctx=upload,
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

    async def _connect_anew(
        self, destination: _Destination, limits: aiohttp.ClientTimeout
    ) -> tuple[Connection, ResponseHandler]:
        """A connection that was never used. Those that wait in the pool are as stale as the one before."""
        while True:
            connection, protocol = await self._connect(destination, limits)
            if not _was_used(protocol):
                return connection, protocol
            connection.close()

    def _forget_address(self, url: str) -> None:
        """No connection stood: the host may have moved, and the next call asks DNS."""
        parsed, connector = URL(url), self._session.connector
        if isinstance(connector, aiohttp.TCPConnector) and parsed.raw_host and parsed.port:
            connector.clear_dns_cache(parsed.raw_host, parsed.port)

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


class _Upload(BytesIO):
    """A request's body on its way through the session, which reads it in pieces."""

    def __init__(self, request: ProviderRequest, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(request.body)
        self.request = request
        self.is_reused = False
        self._loop = loop
        self._read_at = loop.time()

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if chunk:
            self.request.stage = "sent" if self.tell() == len(self.request.body) else "sending"
            self._read_at = self._loop.time()
        return chunk

    def age_s(self) -> float:
        """Since the last piece was taken."""
        return self._loop.time() - self._read_at


class _ClosedBefore(Exception):
    """The server had closed the connection before it could read the request."""


def _was_used(protocol: ResponseHandler) -> bool:
    """Whether an answer has come over this connection before. aiohttp does not say which are new."""
    return getattr(protocol, "was_used", False)


def _is_idle_close(error: BaseException, after_s: float) -> bool:
    """Whether a connection of the pool ended like one that the server had closed for idleness.

    Its end was on the way when the request went out, so it comes within a round trip, before any byte of an answer.
    """
    if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
        return False  # half a head had come
    is_end = isinstance(
        error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | aiohttp.ClientConnectionResetError
    )
    return is_end and after_s < IDLE_CLOSE_S


@lru_cache(maxsize=256)
def _client_timeout(connect_s: float, total_s: float) -> aiohttp.ClientTimeout:
    # At most half of the whole, to be the first to pass: what can't be reached is not a call that took too long.
    # `connect` would count the wait for a free connection too. The total is our caller's, which is exact:
    # aiohttp rounds anything above 5 s up to a whole second. Nor has the session a time-out for reading: it would count
    # the time that a model thinks.
    return aiohttp.ClientTimeout(total=None, sock_connect=min(connect_s, total_s / 2))
