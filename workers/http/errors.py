"""The one table of foreign errors: what each of aiohttp's means for a job."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import client_exceptions, http_exceptions

from ..prompt.failure import Failure

if TYPE_CHECKING:
    from tasks.errors import ErrorCode

    from ..providers import Stage

__all__ = ["FOREIGN", "translate"]


@dataclass(frozen=True, slots=True)
class _Meaning:
    code: ErrorCode
    text: str
    retryable: bool = True
    unreachable: bool = False


_CONNECT = _Meaning("connection", "can't connect to the provider", unreachable=True)
_BROKEN = _Meaning("connection", "the connection to the provider broke before the answer was complete")
_TLS = _Meaning("connection", "TLS with the provider failed")
_SLOW = _Meaning("timeout", "the provider did not answer within the model's time-out")
# It would be the same the next time, and is paid for.
_GARBLED = _Meaning("bad_response", "the provider's answer is not valid HTTP, or its headers are too large", False)
_BAD_URL = _Meaning("connection", "the provider's base_url is not a usable http(s) URL; mend the catalogue", False)
_PROXY = _Meaning("connection", "the HTTP proxy refused the connection to the provider")

# Looked up along the exception's MRO, so a class stands here for its subclasses too; each class that aiohttp
# can raise is named all the same, and a test holds the table against aiohttp's own list.
_MEANINGS: dict[type[BaseException], _Meaning] = {
    client_exceptions.ClientError: _BROKEN,
    client_exceptions.ClientConnectionError: _BROKEN,
    client_exceptions.ClientConnectionResetError: _BROKEN,
    client_exceptions.ClientOSError: _BROKEN,
    client_exceptions.ClientConnectorError: _CONNECT,
    client_exceptions.ClientConnectorDNSError: _Meaning(
        "connection", "the provider's host name is unknown", unreachable=True
    ),
    client_exceptions.ClientProxyConnectionError: _Meaning(
        "connection", "can't connect to the HTTP proxy", unreachable=True
    ),
    client_exceptions.ClientSSLError: _TLS,
    client_exceptions.ClientConnectorSSLError: _TLS,
    client_exceptions.ClientConnectorCertificateError: _Meaning(
        "connection", "the provider's TLS certificate is not trusted"
    ),
    client_exceptions.UnixClientConnectorError: _CONNECT,
    client_exceptions.ServerConnectionError: _BROKEN,
    client_exceptions.ServerDisconnectedError: _Meaning(
        "connection", "the provider closed the connection without an answer"
    ),
    client_exceptions.ServerFingerprintMismatch: _TLS,
    client_exceptions.ServerTimeoutError: _SLOW,
    client_exceptions.ConnectionTimeoutError: _Meaning(
        "timeout", "no connection to the provider within the model's connect time-out", unreachable=True
    ),
    client_exceptions.SocketTimeoutError: _Meaning(
        "timeout", "the provider stopped in the middle of its answer for longer than the model's read time-out"
    ),
    client_exceptions.ClientResponseError: _GARBLED,
    client_exceptions.ClientHttpProxyError: _PROXY,
    client_exceptions.ContentTypeError: _GARBLED,
    client_exceptions.ClientPayloadError: _Meaning(
        "connection", "the provider's answer was cut off, or its encoding is broken"
    ),
    client_exceptions.InvalidURL: _BAD_URL,
    client_exceptions.InvalidUrlClientError: _BAD_URL,
    client_exceptions.NonHttpUrlClientError: _BAD_URL,
    http_exceptions.HttpProcessingError: _GARBLED,
    ssl.SSLError: _TLS,
    TimeoutError: _SLOW,
    OSError: _BROKEN,
    EOFError: _BROKEN,
    asyncio.IncompleteReadError: _BROKEN,
    # aiohttp raises bare ones for a reader whose connection has gone and for a value that can't be a header.
    RuntimeError: _BROKEN,
    ValueError: _Meaning("internal", "the request can't be written as HTTP", False),
}

FOREIGN: tuple[type[BaseException], ...] = tuple(_MEANINGS)
"""What the HTTP border catches: every class that has a meaning here."""


def translate(error: BaseException, *, stage: Stage = "connecting") -> Failure:
    """The named failure that a foreign exception means; `stage` is how far the request had come.

    Raise it outside the `except` block: the foreign exception holds the request's headers, and must not ride along as
    `__context__`.
    """
    meaning = next(_MEANINGS[cls] for cls in type(error).__mro__ if cls in _MEANINGS)
    detail = _harmless_detail(error)
    text = f"{meaning.text} ({detail})" if detail else meaning.text
    return Failure(
        meaning.code,
        text,
        retryable=meaning.retryable,
        suspected_payment=stage == "sent",
        unreachable=meaning.unreachable,
    )


_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})
"""OpenSSL's codes for a certificate whose authority is not among ours."""


def _certificate_detail(error: aiohttp.ClientConnectorCertificateError) -> str:
    """OpenSSL's own words, and what helps against them."""
    certificate = error.certificate_error
    detail = f"{error.host}:{error.port}: {getattr(certificate, 'verify_message', '')}".rstrip(": ")
    if getattr(certificate, "verify_code", None) in _UNKNOWN_ISSUER:
        return f"{detail}; a private CA goes into PROMPTMILL_HTTP__CA_FILE"
    return detail


def _harmless_detail(error: BaseException) -> str:
    """What can hold neither key nor prompt: the peer's address and the system's own words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate_detail(error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return ""
