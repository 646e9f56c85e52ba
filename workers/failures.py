"""What goes wrong with one prompt job, and the one place where foreign errors become ours.

`Failure` is both the exception that the pipeline's rungs raise and the value that `retry.decide` looks at.
It never carries a key or a piece of a prompt: its text is written here and in the codecs, from the error's
class, the host and the provider's short error names. The provider's own words stay in `provider_body`,
which goes into the job's result and nowhere else.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import client_exceptions, http_exceptions

if TYPE_CHECKING:
    from tasks.errors import ErrorCode

    from .exchange import Stage

__all__ = ["FOREIGN", "Failure", "Incapable", "translate"]


class Failure(Exception):
    """One named failure of a job or of one of its attempts.

    `retryable` says whether the same request may succeed later; `retry_after_s` is what the provider asked us
    to wait, in seconds; `provider_body` is its own text, already cut. `suspected_payment`: the request had been sent
    whole when the call ended without an answer. `unreachable`: no connection to the provider came to stand.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        http_status: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        provider_body: str | None = None,
        request_id: str | None = None,
        suspected_payment: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.http_status = http_status
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.provider_body = provider_body
        self.request_id = request_id
        self.suspected_payment = suspected_payment
        self.unreachable = unreachable

    def advise(self, advice: str) -> None:
        """Say what to do about it, after what is wrong."""
        self.message = f"{self.message}; {advice}"
        self.args = (self.message,)

    def hide(self, secret: str) -> None:
        """Strike `secret` from every text: gateways are known to echo the key that they refuse."""
        self.message = self.message.replace(secret, "[key]")
        self.args = (self.message,)
        if self.provider_body is not None:
            self.provider_body = self.provider_body.replace(secret, "[key]")
        if self.request_id is not None:
            self.request_id = self.request_id.replace(secret, "[key]")


class Incapable(Failure):
    """This worker lacks the model, or a key for it; another worker may have both."""


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
_GARBLED = _Meaning("bad_response", "the provider's answer is not valid HTTP, or its headers are too large")
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
        "connection",
        "the provider's TLS certificate is not trusted; a private CA goes into PROMPTMILL_HTTP__CA_FILE",
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


def _harmless_detail(error: BaseException) -> str:
    """What can hold neither key nor prompt: the peer's address and the system's own words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{error.host}:{error.port}: {getattr(error.certificate_error, 'verify_message', '')}".rstrip(": ")
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return ""
