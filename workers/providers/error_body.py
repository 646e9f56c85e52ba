"""What a provider's error body says, wherever it says it: in an object, an array, a string, or JSON within a string.

Its sentence is for decisions alone: it quotes keys and prompts, so it never becomes a part of our texts. Names are
short plain words, such as `rate_limit_exceeded`, and may be repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ErrorBody", "error_body", "error_of"]

_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}", re.ASCII)

_NAMES = (
    "code",
    "type",
    "status",
    "reason",
    "param",
    "error_code",
    "errorCode",
    "status_code",
    "statusCode",
    "limit_source",
)
_SENTENCES = ("message", "msg", "error_msg", "status_msg", "errorMessage", "detail", "raw", "error", "code")
_WAITS_S = (
    *("retryDelay", "retry_after", "retryAfter", "retry_after_seconds", "retryAfterSeconds", "estimated_time"),
    *("Retry-After", "X-RateLimit-Reset"),
)
_WAITS_MS = ("retry_after_ms", "retryAfterMs")
_INNER = (
    "error",
    "errors",
    "details",
    "metadata",
    "headers",
    "innererror",
    "inner_error",
    "base_resp",
    "fault",
    "detail",
)
"""Where the cause stands, or what adds to it."""

_SAYS_NOTHING = frozenset({"error", "0", "None", "null"})
_DEEPEST = 4
_MOST_OBJECTS = 32
_SENTENCE_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`names` are in order of appearance, `status` is the first that could be an HTTP status, `waits` are texts and how
    many seconds their unit has."""

    names: tuple[str, ...] = ()
    sentence: str = field(default="", repr=False)
    status: int | None = None
    waits: tuple[tuple[str, float], ...] = ()


_NOTHING = ErrorBody()


def error_body(body: bytes) -> ErrorBody:
    """What the body of a refusal says; nothing where it is no JSON but a page."""
    try:
        parsed = orjson.loads(body)
    except ValueError:
        text = body[:_SENTENCE_CHARS].decode("utf-8", "replace").strip()
        return _NOTHING if text.startswith("<") else ErrorBody(sentence=text)
    return error_of(parsed)


def error_of(parsed: Any) -> ErrorBody:
    """The same for a JSON value."""
    names: list[str] = []
    sentences: list[str] = []
    waits: list[tuple[str, float]] = []
    for found in _objects(parsed):
        names += (name for key in _NAMES if (name := _name(found.get(key))) is not None)
        sentences += (text for key in _SENTENCES if isinstance(text := found.get(key), str))
        waits += ((str(found[key]), 1.0) for key in _WAITS_S if _is_scalar(found.get(key)))
        waits += ((str(found[key]), 0.001) for key in _WAITS_MS if _is_scalar(found.get(key)))
    if isinstance(parsed, str):
        sentences.append(parsed)
    return ErrorBody(
        names=tuple(dict.fromkeys(names)),
        sentence="\n".join(sentences)[:_SENTENCE_CHARS],
        status=next((int(name) for name in names if name.isdigit() and 400 <= int(name) < 600), None),
        waits=tuple(waits),
    )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The error, and what stands within it. The error itself comes before what lies around it."""
    level, count = _nearest(value), 0
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for found in level:
            yield found
            count += 1
            if count == _MOST_OBJECTS:
                return
            for key in (*_INNER, *_SENTENCES):
                below += _within(found.get(key))
        level = [found for found in below if not any(found is each for each in level)]


def _nearest(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        value = next((each for each in value if isinstance(each, dict)), None)
    if not isinstance(value, dict):
        return []
    error = value.get("error")
    return [error, {key: each for key, each in value.items() if key != "error"}] if isinstance(error, dict) else [value]


def _within(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return [each for each in value if isinstance(each, dict)]
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        # A gateway that puts the whole answer of the provider behind it into its own sentence.
        try:
            return _within(orjson.loads(value))
        except ValueError:
            return []
    return []


def _name(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and _NAME.fullmatch(value) and value not in _SAYS_NOTHING else None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
