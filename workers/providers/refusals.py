"""What a provider's refusal means: HTTP status, and the short names in its error body, to our error codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import urlsplit

import orjson

from ..prompt.failure import Failure
from .retry_after import retry_after_s

if TYPE_CHECKING:
    from tasks.errors import ErrorCode

    from .codec import RawResponse

__all__ = ["refusal", "with_evidence"]

PROVIDER_BODY_BYTES = 4_096
"""So much of a provider's error body goes into the result."""


@dataclass(frozen=True, slots=True)
class _Rule:
    code: ErrorCode
    text: str
    retryable: bool = False


_AUTH = _Rule("auth", "the provider refused the key")
_QUOTA = _Rule("quota_exhausted", "the provider's account has no credit left; waiting does not help")
_TOO_LARGE = _Rule("too_large", "the request is larger than the model's context or the provider's size limit")
_RATE = _Rule("rate_limited", "the provider's rate limit was hit", retryable=True)
_SERVER = _Rule("server_error", "the provider failed", retryable=True)
_BUSY = _Rule("server_error", "the provider is overloaded", retryable=True)
_BAD_REQUEST = _Rule("bad_request", "the provider refused the request")
_NO_MODEL = _Rule("not_found", "the provider does not know this model or address; check base_url and upstream")
_FILTERED = _Rule("content_filter", "the provider's content filter refused the prompt")

_BY_STATUS = {
    401: _AUTH,
    402: _QUOTA,
    403: _Rule("permission", "the key may not use this model or feature"),
    404: _NO_MODEL,
    408: _Rule("timeout", "the provider gave up waiting for the request or for the model", retryable=True),
    409: _Rule("server_error", "the provider reports a conflict with another request", retryable=True),
    413: _TOO_LARGE,
    425: _BUSY,
    429: _RATE,
    501: _Rule("server_error", "the provider does not implement this request"),
    503: _BUSY,
    529: _BUSY,
}

# `error.code` and `error.type`, which say more than the status: a 429 may be an empty account, a 400 a filter.
_BY_NAME = {
    "invalid_api_key": _AUTH,
    "insufficient_quota": _QUOTA,
    "insufficient_user_quota": _QUOTA,
    "insufficient_balance": _QUOTA,
    "billing_hard_limit_reached": _QUOTA,
    "billing_not_active": _QUOTA,
    "context_length_exceeded": _TOO_LARGE,
    "string_above_max_length": _TOO_LARGE,
    "request_too_large": _TOO_LARGE,
    "model_not_found": _NO_MODEL,
    "rate_limit_exceeded": _RATE,
    "rate_limit_error": _RATE,
    "overloaded_error": _BUSY,
    "content_filter": _FILTERED,
    "content_policy_violation": _FILTERED,
}

# An error's name, never its sentence: sentences quote keys and prompts, and our text goes into logs.
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}", re.ASCII)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)


def refusal(raw: RawResponse, *, now: float) -> Failure:
    """The failure that a status outside 200-299 means. `now` in epoch seconds."""
    if 300 <= raw.status < 400:
        return with_evidence(_redirect(raw), raw)
    names = _error_names(raw.body)
    rule = _rule(raw.status, names)
    failure = Failure(
        rule.code,
        f"{rule.text} ({', '.join([str(raw.status), *names])})",
        retryable=rule.retryable,
        retry_after_s=retry_after_s(raw.headers, now),
    )
    return with_evidence(failure, raw)


def with_evidence(failure: Failure, raw: RawResponse) -> Failure:
    """Add what the response shows: status, request id and the cut body."""
    failure.http_status = raw.status
    failure.provider_body = raw.body[:PROVIDER_BODY_BYTES].decode("utf-8", "replace")
    failure.request_id = _request_id(raw)
    return failure


def _rule(status: int, names: list[str]) -> _Rule:
    for name in names:
        if name in _BY_NAME:
            return _BY_NAME[name]
    by_class = _SERVER if status >= 500 else _BAD_REQUEST
    return _BY_STATUS.get(status, by_class)


def _error_names(body: bytes) -> list[str]:
    """`code`, `type` and `param` of an OpenAI error body, where they are plain names."""
    try:
        parsed = orjson.loads(body)
    except ValueError:
        return []
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    if not isinstance(error, dict):
        return []
    return list(dict.fromkeys(name for key in ("code", "type", "param") if _is_name(name := error.get(key))))


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _request_id(raw: RawResponse) -> str | None:
    value = raw.headers.get("x-request-id") or raw.headers.get("request-id") or ""
    return value if _REQUEST_ID.fullmatch(value) else None


def _redirect(raw: RawResponse) -> Failure:
    return Failure(
        "bad_response",
        f"the provider redirects ({raw.status}) to {_origin(raw.headers.get('location', ''))}; redirects are not "
        "followed, because the key would go along: put the final address into the provider's base_url",
    )


def _origin(location: str) -> str:
    try:
        url = urlsplit(location)
        host = url.hostname
    except ValueError:
        return "an unreadable address"
    return f"{url.scheme}://{host}" if host and url.scheme.isalpha() else "another path"
