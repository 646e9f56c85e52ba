"""Everything that can be wrong with a provider's answer: one table, name -> behaviour. No I/O.

A behaviour is a value that says what happens to one call:

- `Instead`: another response in place of the answer;
- `Altered`: the answer, but late, filtered or with a monstrous header;
- `Broken`: the answer, or nothing, over a connection that fails;
- `Flood` and `Bomb`: more bytes than anybody wants.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from types import MappingProxyType
from typing import Literal, Self

import orjson

from .answers.replies import ErrorParts, error_body

__all__ = [
    "FAULTS",
    "HTML_TYPE",
    "JSON_TYPE",
    "REDIRECTED_PATH",
    "Altered",
    "Bomb",
    "Broken",
    "Fault",
    "Flood",
    "Instead",
    "check_shares",
    "delivers_answer",
    "parse_fault",
    "pick",
    "status_sent",
]

JSON_TYPE = "application/json"
HTML_TYPE = "text/html"

REDIRECTED_PATH = "/v1/redirected"
"""Where `redirect` points: on the same server, so that a client that follows it is seen in the ledger."""

_LARGE_BYTES = 200_000_000
_DEPTH = 200_000


@dataclass(frozen=True, slots=True)
class Instead:
    """A whole response. `retry_date_s` adds a Retry-After that is an HTTP date so many seconds ahead."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON_TYPE
    retry_date_s: float | None = None
    error: ErrorParts | None = None
    """What `body` says, for a provider that says it in other words."""
    only_flex: bool = False
    """Befalls calls of the flex tier alone."""

    @classmethod
    def of(
        cls,
        status: int,
        error: ErrorParts,
        headers: Mapping[str, str] | None = None,
        *,
        retry_date_s: float | None = None,
    ) -> Self:
        """An error in OpenAI's words."""
        body = error_body(error.message, error.kind, code=error.code, param=error.param)
        return cls(status, body, headers or {}, retry_date_s=retry_date_s, error=error)


@dataclass(frozen=True, slots=True)
class Altered:
    """The answer, changed."""

    latency_factor: float = 1.0
    header_bytes: int = 0
    content_filter: bool = False
    breaks_json: bool = False
    """Of an answer that is to fit a schema: in one of the ways of `broken_json`, but not if it is asked for again with
    what was wrong with it."""
    truncates: bool = False
    """In the middle, but not if it is asked for again with a higher limit."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The answer does not arrive, or not whole. The last three strike a streamed one in its middle, after some of its
    text; one that is not streamed is cut, hangs, or is closed without a byte."""

    way: Literal["hang", "reset", "close", "partial", "chunk-cut", "drip", "stream-cut", "stream-hang", "stream-error"]


@dataclass(frozen=True, slots=True)
class Flood:
    """A 200 that goes on for so many bytes, in chunks, without a Content-Length that would warn."""

    body_bytes: int
    piece_bytes: int = 65_536

    def pieces(self) -> Iterator[bytes]:
        """JSON that stays incomplete until its last byte; only one piece is ever in memory."""
        yield b'{"choices": ["'
        piece = b"a" * self.piece_bytes
        for _ in range(self.body_bytes // self.piece_bytes):
            yield piece
        yield b"a" * (self.body_bytes % self.piece_bytes) + b'"]}'


@dataclass(frozen=True, slots=True)
class Bomb:
    """A small gzip body that inflates to so many bytes of blanks."""

    inflated_bytes: int

    def body(self) -> bytes:
        """The gzip file: about a thousandth of what it inflates to."""
        return _gzip_of_blanks(self.inflated_bytes)


Fault = Instead | Altered | Broken | Flood | Bomb


def _rate_limited(headers: Mapping[str, str] | None = None, *, retry_date_s: float | None = None) -> Instead:
    error = ErrorParts("Rate limit reached. Please slow down.", "requests", code="rate_limit_exceeded")
    return Instead.of(429, error, headers, retry_date_s=retry_date_s)


def _error(status: int, message: str, kind: str, *, code: str | None = None, param: str | None = None) -> Instead:
    return Instead.of(status, ErrorParts(message, kind, code=code, param=param))


def _page(status: int, title: str) -> Instead:
    page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return Instead(status, page.encode(), content_type=HTML_TYPE)


def _answer(choices: bytes) -> Instead:
    """A 200 whose envelope is right; `choices` is JSON, or nearly."""
    return Instead(
        200,
        b'{"id":"chatcmpl-simulated","object":"chat.completion","created":1750000000,"model":"simulated",'
        b'"choices":%b,"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}' % choices,
    )


def _choice(message: bytes) -> bytes:
    return b'[{"index":0,"message":%b,"finish_reason":"stop"}]' % message


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        # Rate limits, in each way that a provider tells (or does not tell) when to come back
        "429": _rate_limited({"Retry-After": "1"}),
        "429-plain": _rate_limited(),
        "429-date": _rate_limited(retry_date_s=2.0),
        "429-negative": _rate_limited({"Retry-After": "-5"}),
        "429-huge": _rate_limited({"Retry-After": "31536000000"}),
        "429-junk": _rate_limited({"Retry-After": "a little later; please"}),
        "429-ms": _rate_limited({"retry-after-ms": "250"}),
        "429-llm-provider": _rate_limited({"llm_provider-retry-after": "1"}),
        "quota": _error(
            429,
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            code="insufficient_quota",
        ),
        # The flex tier has no room
        "flex-full": replace(
            _error(
                429,
                "Resource unavailable. Please try again later.",
                "invalid_request_error",
                code="resource_unavailable",
            ),
            only_flex=True,
        ),
        # The server's fault
        "500": _error(500, "The server had an error while processing your request.", "server_error"),
        "502-html": _page(502, "502 Bad Gateway"),
        "503": _error(503, "The engine is currently overloaded, please try again later.", "server_error"),
        "503-html": _page(503, "503 Service Temporarily Unavailable"),
        "529": Instead(
            529, orjson.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
        ),
        # The caller's fault
        "400": _error(400, "Invalid value for 'temperature'.", "invalid_request_error", param="temperature"),
        "401": _error(401, "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key"),
        "403": _error(403, "This key has no access to the model.", "invalid_request_error", code="model_not_allowed"),
        "404": _error(404, "The model does not exist.", "invalid_request_error", code="model_not_found"),
        "408": _error(408, "The request took too long to arrive.", "invalid_request_error", code="request_timeout"),
        "context": _error(
            400,
            "This model's maximum context length is 8192 tokens; please shorten the messages.",
            "invalid_request_error",
            code="context_length_exceeded",
            param="messages",
        ),
        # The connection
        "hang": Broken("hang"),
        "reset": Broken("reset"),
        "close": Broken("close"),
        "partial": Broken("partial"),
        "chunk-cut": Broken("chunk-cut"),
        "drip": Broken("drip"),
        "stream-cut": Broken("stream-cut"),
        "stream-hang": Broken("stream-hang"),
        "stream-error": Broken("stream-error"),
        "slow": Altered(latency_factor=10.0),
        # 200, but not an answer
        "error-200": _error(200, "The upstream model failed.", "upstream_error", code="upstream_error"),
        "empty": Instead(200, b""),
        "null": Instead(200, b"null"),
        "no-choices": _answer(b"[]"),
        "null-content": _answer(_choice(b'{"role":"assistant","content":null}')),
        "html": _page(200, "Welcome"),
        "nan": _answer(b'[{"index":NaN,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]'),
        "bad-utf8": _answer(_choice(b'{"role":"assistant","content":"\xff\xfe\xc3\x28"}')),
        "deep": _answer(b"[" * _DEPTH + b"]" * _DEPTH),
        "content-filter": Altered(content_filter=True),
        "badjson": Altered(breaks_json=True),
        "truncated": Altered(truncates=True),
        # Too much of it
        "huge": Flood(_LARGE_BYTES),
        "gzip-bomb": Bomb(_LARGE_BYTES),
        "header-100k": Altered(header_bytes=100_000),
        # Elsewhere
        "redirect": Instead(302, b"", {"Location": REDIRECTED_PATH}),
    }
)


def parse_fault(text: str) -> tuple[str, float]:
    """Read `NAME=SHARE`, as in `429=0.1`. Raises `ValueError` that says what is wrong and what would be right."""
    name, equals, share_text = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not a fault: write NAME=SHARE, for example 429=0.1")
    try:
        share = float(share_text)
    except ValueError:
        raise ValueError(f"the share of fault {name!r} is {share_text!r}: write a number from 0 to 1") from None
    check_shares({name.strip(): share})
    return name.strip(), share


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise `ValueError` unless each name is a fault, each share is 0 to 1, and together they are at most 1."""
    for name, share in shares.items():
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r}; the known ones are {', '.join(FAULTS)}")
        if not 0 <= share <= 1:
            raise ValueError(f"the share of fault {name!r} is {share:g}: it must lie between 0 and 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise ValueError(f"the faults' shares add up to {sum(shares.values()):g}: together they can't exceed 1")


def pick(shares: Mapping[str, float], uniform: float) -> str | None:
    """The fault that a number from 0 to 1 falls on, if any."""
    for name, upper in zip(shares, accumulate(shares.values()), strict=True):
        if uniform < upper:
            return name
    return None


def status_sent(fault: Fault | None) -> int | None:
    """The status that the client sees, None where it sees none."""
    match fault:
        case Instead(status=status):
            return status
        case Broken(way="hang" | "reset" | "close"):
            return None
        case _:
            return 200


def delivers_answer(fault: Fault | None) -> bool:
    """Whether the answer is sent, be it in part: then its tokens are used up."""
    match fault:
        case (
            None
            | Altered()
            | Broken(way="partial" | "chunk-cut" | "drip" | "stream-cut" | "stream-hang" | "stream-error")
        ):
            return True
        case _:
            return False


@cache
def _gzip_of_blanks(inflated_bytes: int) -> bytes:
    """Compress one block and repeat it: a full flush makes blocks of deflate independent of each other."""
    block = b" " * 1_000_000
    times, rest = divmod(inflated_bytes, len(block))
    deflate = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
    repeated = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    ending = deflate.compress(block[:rest]) + deflate.flush()
    checksum = 0
    for _ in range(times):
        checksum = zlib.crc32(block, checksum)
    checksum = zlib.crc32(block[:rest], checksum)
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    sizes = checksum.to_bytes(4, "little") + (inflated_bytes % 2**32).to_bytes(4, "little")
    return header + repeated * times + ending + sizes
