"""HTTP to the providers: one pooled session for each connection profile, owned by the worker's lifecycle.

Only this module and `exchange` know aiohttp. What it lets out is a `RawResponse` or a `Failure`: foreign exceptions are
translated at this border, once, because they carry the request's headers, and so the key.

Redirects are never followed (aiohttp would send the key along on the same host), no cookie is kept, and the body
is counted after decompression, so that neither 200 MB nor a gzip bomb of it gets into memory.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from ..prompt.failure import Failure
from ..providers import ProviderRequest, RawResponse
from .encoding import ACCEPTED, Undecodable
from .errors import FOREIGN, translate
from .exchange import Exchanges, Response, reuse_traces, watched_socket
from .pieces import Pieces
from .timeouts import Timeouts
from .unstored import UNCOUNTED_BYTES, Share, Unstored

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from config.catalog import Profile, Timeout
    from config.settings import Http as HttpSettings

    from ..providers import Assembly

__all__ = ["Http", "check_proxies", "tls_context"]

ERROR_BODY_BYTES = 64 * 1024
"""So much of an error's body is read. Its status is what counts, however much follows."""

ERROR_BODY_S = 5.0
"""So long an error's body is waited for."""

FIRST_SHARE_BYTES = 1024 * 1024
"""What an answer of unknown length takes at first of the memory for large ones; then it takes as much again."""

FRAGILE_LIMIT = 10
"""Connections of the profile for upstreams that break under load: few of them, each used for one call."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """A session, and the wait for one of its connections.

    aiohttp's connector can wait too, but its wait counts as time of the call, and the call's time-out is the
    provider's, not ours.
    """

    session: aiohttp.ClientSession
    exchanges: Exchanges
    free: asyncio.Semaphore | None
    """None: without a limit, the pool's concurrency is one, because a job makes one call at a time."""


class Http:
    """Sends requests to providers. Open it on the loop that uses it: `async with Http(...) as http`."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._lanes: dict[Profile, _Lane] = {}
        self._most_bytes = settings.max_response_bytes
        self._first_bytes = min(UNCOUNTED_BYTES, settings.max_response_bytes)
        self._asks_environment = settings.proxy is None and settings.trust_env

    async def __aenter__(self) -> Self:
        check_proxies(self._settings)
        self._timeouts = Timeouts()
        self._unstored = Unstored(self._settings.max_unstored_bytes)
        limit, tls = self._settings.limit, tls_context(self._settings)
        self._lanes["default"] = self._lane(limit, tls, force_close=self._settings.force_close)
        self._lanes["fragile"] = self._lane(min(limit or FRAGILE_LIMIT, FRAGILE_LIMIT), tls, force_close=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes.values():
            await lane.session.close()
        # A TLS transport closes in the loop's next turns; without them its socket outlives the session.
        await asyncio.sleep(0)
        self._lanes.clear()

    def post(
        self, request: ProviderRequest, *, timeout: Timeout, profile: Profile = "default"
    ) -> Coroutine[Any, Any, RawResponse]:
        """Send a request and read the whole answer, of any status.

        `timeout.total_s` counts from when a connection may be used, without the wait for memory for a large answer.
        That memory is there for others again when the response's `held` is let go. Raises `Failure` (`timeout`,
        `connection`, `bad_response`, `too_large`). Cancelling closes the connection at once.
        """
        lane = self._lanes[profile]
        if lane.free is None:
            return self._post(lane, request, timeout)
        return self._post_in_turn(lane, lane.free, request, timeout)

    async def stream(
        self,
        request: ProviderRequest,
        assembly: Assembly,
        *,
        timeout: Timeout,
        on_text: Callable[[str], object],
        profile: Profile = "default",
    ) -> RawResponse:
        """As `post`, of an answer that comes in pieces: they go into `assembly`, and what they add to the text to
        `on_text`. The response's body is the answer put together. One that comes whole all the same is read whole.

        `timeout.total_s` is how long the first piece may take, and the next after a silence but for comments and pings;
        `timeout.read_s` limits a silence.
        """
        lane = self._lanes[profile]
        if lane.free is None:
            return await self._stream(lane, request, assembly, timeout, on_text)
        async with lane.free:
            return await self._stream(lane, request, assembly, timeout, on_text)

    async def _stream(
        self,
        lane: _Lane,
        request: ProviderRequest,
        assembly: Assembly,
        timeout: Timeout,
        on_text: Callable[[str], object],
    ) -> RawResponse:
        most = max(self._most_bytes, request.answer_bytes)
        pieces = Pieces(assembly, on_text, most=most, silent_s=timeout.total_s)
        limit = self._timeouts.after(timeout.total_s)
        try:
            with limit:
                response = await lane.exchanges.post(request, timeout, self._proxy(request.url))
                try:
                    if response.status >= 300:
                        return RawResponse(response.status, response.headers, await _error_body(response))
                    response.decode()
                    whole = await pieces.read_first(response)
                    if whole is not None:
                        whole = await _read(response, self._first_bytes, whole)
                        _check_size(response, whole, most)
                except BaseException:
                    response.close()
                    raise
            if whole is None:
                return await self._put_together(response, pieces)
            if response.at_eof():
                return RawResponse(response.status, response.headers, whole)
            return await self._large(response, whole, limit.expires_at - asyncio.get_running_loop().time(), most)
        except Undecodable as unasked:
            failure = _undecodable(unasked)
        except FOREIGN as error:
            failure = translate(error, stage=request.stage)
        try:
            raise failure  # outside of `except`, and let go of: see `_post`
        finally:
            del failure

    async def _put_together(self, response: Response, pieces: Pieces) -> RawResponse:
        """Read the rest of a stream."""
        try:
            body = await pieces.read_rest(response)
            held = None
            if len(body) > UNCOUNTED_BYTES:
                held = self._unstored.open()
                await held.grow(len(body))
                await self._unstored.turn()
        except BaseException:
            response.close()
            raise
        return RawResponse(response.status, response.headers, body, held=held)

    async def _post_in_turn(
        self, lane: _Lane, free: asyncio.Semaphore, request: ProviderRequest, timeout: Timeout
    ) -> RawResponse:
        async with free:
            return await self._post(lane, request, timeout)

    async def _post(self, lane: _Lane, request: ProviderRequest, timeout: Timeout) -> RawResponse:
        limit = self._timeouts.after(timeout.total_s)
        most = max(self._most_bytes, request.answer_bytes)
        try:
            with limit:
                response = await lane.exchanges.post(request, timeout, self._proxy(request.url))
                try:
                    body = await self._beginning(response, most)
                except BaseException:
                    response.close()
                    raise
            if len(body) <= self._first_bytes or response.at_eof() or response.status >= 300:
                return RawResponse(response.status, response.headers, body)
            return await self._large(response, body, limit.expires_at - asyncio.get_running_loop().time(), most)
        except Undecodable as unasked:
            failure = _undecodable(unasked)
        except FOREIGN as error:
            failure = translate(error, stage=request.stage)
        try:
            # Outside of `except`, so that the foreign exception does not ride along.
            raise failure
        finally:
            # An exception that its own frame holds waits for the garbage collector, with the prompt in it.
            del failure

    async def _beginning(self, response: Response, most: int) -> bytes:
        """All of a small answer, or what there is of an error's body; of a large answer the first part."""
        if response.status >= 300:
            return await _error_body(response)
        response.decode()
        body = await _read(response, self._first_bytes)
        _check_size(response, body, most)
        return body

    async def _large(self, response: Response, beginning: bytes, left_s: float, most: int) -> RawResponse:
        share = self._unstored.open()
        try:
            body = await _rest(response, beginning, share, left_s, most)
            _check_size(response, body, most)
        except BaseException:
            response.close()
            raise
        await self._unstored.turn()
        return RawResponse(response.status, response.headers, body, held=share)

    def _proxy(self, url: str) -> str | None:
        return _environment_proxy(url) if self._asks_environment else self._settings.proxy

    def _lane(self, limit: int, tls: ssl.SSLContext | bool, *, force_close: bool) -> _Lane:
        # aiohttp refuses a keep-alive time together with force_close.
        reuse: dict[str, Any] = {} if force_close else {"keepalive_timeout": self._settings.keepalive_s}
        connector = aiohttp.TCPConnector(
            limit=limit,
            limit_per_host=self._settings.limit_per_host,
            ttl_dns_cache=self._settings.ttl_dns_cache_s,
            force_close=force_close,
            ssl=tls,
            socket_factory=watched_socket,
            **reuse,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=self._settings.max_header_bytes,
            max_field_size=self._settings.max_header_bytes,
            headers={"User-Agent": "promptmill", "Accept-Encoding": ACCEPTED},
            auto_decompress=False,
            trace_configs=reuse_traces(),
        )
        exchanges = Exchanges(session, max_header_bytes=self._settings.max_header_bytes)
        return _Lane(session, exchanges, asyncio.Semaphore(limit) if limit else None)


async def _read(response: Response, limit: int, beginning: bytes = b"") -> bytes:
    """The body, whole if it fits into `limit` bytes; else more than `limit` of it, and the rest is left unread."""
    body = beginning or await response.read_some()
    if response.at_eof() or len(body) > limit:
        return body
    chunks = [body]
    size = len(body)
    while size <= limit and (chunk := await response.read_some()):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


async def _rest(response: Response, beginning: bytes, share: Share, left_s: float, most: int) -> bytes:
    """The whole body. More than `most` of it where it is larger, and the rest is left unread."""
    loop = asyncio.get_running_loop()
    chunks, size = [beginning], len(beginning)
    room = _stated_length(response) or FIRST_SHARE_BYTES
    while size <= most:
        await share.grow(min(room, most))  # the provider's time does not run: it is we who don't read
        began_at = loop.time()
        async with asyncio.timeout(left_s):
            while size <= min(room, most) and (chunk := await response.read_some()):
                chunks.append(chunk)
                size += len(chunk)
        if response.at_eof():
            break
        left_s -= loop.time() - began_at
        room *= 2
    return b"".join(chunks)


def _undecodable(body: Undecodable) -> Failure:
    """The next answer would be encoded in the same way."""
    return Failure(
        "bad_response",
        f"the provider's answer is encoded as {body.encoding}, or is not what its Content-Encoding says; we ask for "
        f"{ACCEPTED}: see to the provider, or to a proxy before it",
        suspected_payment=True,
    )


def _check_size(response: Response, body: bytes, most: int) -> None:
    if len(body) > most:
        raise Failure(
            "too_large",
            f"the provider's answer is larger than {most:,} bytes; raise PROMPTMILL_HTTP__MAX_RESPONSE_BYTES, or ask "
            "for fewer answers in one job",
            http_status=response.status,
            suspected_payment=True,
        )


def _stated_length(response: Response) -> int | None:
    """How long the answer is, where its head says so. Of a compressed one it tells another length."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


async def _error_body(response: Response) -> bytes:
    """What there is of an error's body. That it is cut, late or broken must not hide the status."""
    body = b""
    with suppress(*FOREIGN, Undecodable):
        response.decode()
        async with asyncio.timeout(ERROR_BODY_S):
            body = await _read(response, ERROR_BODY_BYTES)
    if not response.at_eof():
        response.close()
    return body[:ERROR_BODY_BYTES]


@lru_cache(maxsize=256)
def _environment_proxy(url: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY mean for a URL.

    aiohttp's own `trust_env` asks the environment and .netrc in a thread for each request.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def check_proxies(settings: HttpSettings) -> None:
    """Raises ValueError for a proxy of the environment that we can't speak to. Its address may hold a password."""
    if settings.proxy is not None or not settings.trust_env:
        return
    proxies = getproxies()
    for scheme in ("http", "https"):
        spoken = urlsplit(proxies.get(scheme, "http:")).scheme.lower()
        if spoken not in {"http", "https"}:
            kind = "a SOCKS proxy" if spoken.startswith("socks") else "no http:// or https:// address"
            raise ValueError(
                f"{scheme.upper()}_PROXY names {kind}, which providers can't be called through. Name an HTTP proxy in "
                "PROMPTMILL_HTTP__PROXY, put one before the SOCKS proxy, or switch PROMPTMILL_HTTP__TRUST_ENV off."
            )


def tls_context(settings: HttpSettings) -> ssl.SSLContext | bool:
    """What certificates are checked with. Raises ValueError for a CA file that can't be used."""
    if settings.ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(settings.ca_file)
    except OSError as error:
        reason = error.strerror or "it holds no certificate in PEM format"
        raise ValueError(f"PROMPTMILL_HTTP__CA_FILE can't be used: {settings.ca_file}: {reason}") from None
    return context
