"""What is known of a prompt without a call of its own, and how that is written down.

The first byte says what follows: JSON of an answer or of a failure, as it is or compressed; or nothing, where the call
brought what is not kept, so that the equal prompts have to make theirs.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import fields as fields_of
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from tasks.results import Usage
from tasks.wire.kinds import KINDS

from ..prompt.failure import Failure, OverLimit
from ..providers import Answer
from ..providers.endpoints.responses import is_whole_response

if TYPE_CHECKING:
    from ..prompt.job import JobKind

__all__ = [
    "NOTHING",
    "Known",
    "compressed",
    "decode",
    "encode",
    "encode_failure",
    "is_good",
    "is_shared",
    "leads_on",
]

MOST_BYTES: Final = 4 * 1024 * 1024
"""Of an answer in JSON. A larger one is not kept: many jobs may hold it at the same time."""

COMPRESS_FROM_BYTES: Final = 2_048
LARGE_BYTES: Final = 64 * 1024
_LEVEL: Final = 1

PLAIN, DEFLATED, FAILED, LEFT, NOTHING = b"j", b"z", b"f", b"l", b"n"
"""`LEFT`: a failure for those that have another model to ask (look.lua)."""

_GOOD_ENDS: Final[dict[JobKind, frozenset[str]]] = {
    "chat": frozenset({"stop", "tool_calls", "function_call"}),
    "complete": frozenset({"stop"}),
}

_SHARED: Final = frozenset(
    {"bad_request", "too_large", "not_found", "permission", "content_filter", "bad_response", "quota_exhausted"}
)
"""Codes of failures that say something of the request or the account. An `auth` says something of one worker's key."""

_OF_A_MODEL: Final = frozenset({"server_error", "timeout", "connection", "bad_response"})


class Known(NamedTuple):
    """A stored answer. `cost_usd` is what its call cost, None where unknown."""

    answer: Answer
    answered_by: str
    cost_usd: float | None


def is_good(kind: JobKind, response: dict[str, Any]) -> bool:
    """Whether the answer is whole, so that it may serve later prompts: nothing cut off, refused or filtered."""
    ends = _GOOD_ENDS.get(kind)
    if ends is None:
        return is_whole_response(response) if kind == "respond" else not KINDS[kind].writes
    is_chat = kind == "chat"
    try:
        choices = response["choices"]
        for choice in choices:
            if choice["finish_reason"] not in ends:
                return False
            if is_chat:
                message = choice["message"]
                if not isinstance(message, dict) or message.get("refusal"):
                    return False
    except (LookupError, TypeError):  # it is not what the endpoint answers, or says of an end what can't be read
        return False
    return bool(choices)


def is_shared(failure: Failure) -> bool:
    """Whether equal prompts would fail in the same way."""
    return failure.code in _SHARED and not failure.retryable


def leads_on(failure: Failure) -> bool:
    """Whether equal prompts that have another model to ask would ask it too. A turn that comes too late is each job's
    own: its deadline says so."""
    return failure.code in _OF_A_MODEL or (failure.code == "rate_limited" and failure.http_status is not None)


def encode(known: Known) -> bytes:
    """As it is stored, but for `compressed`."""
    answer, answered_by, cost_usd = known
    response, usage = answer.response, answer.usage
    fields = {
        "response": response,
        "usage": None if usage is None else _counts(usage),
        "answered_by": answered_by,
        "cost_usd": cost_usd,
    }
    if answer.text != _first_text(response):
        fields["text"] = answer.text
    return PLAIN + orjson.dumps(fields)


async def compressed(data: bytes) -> bytes:
    """What `encode` wrote, from `COMPRESS_FROM_BYTES` on: in a thread if it is large; `NOTHING` if it is too large."""
    if len(data) > MOST_BYTES:
        return NOTHING
    text = data[len(PLAIN) :]
    if len(data) < LARGE_BYTES:
        return DEFLATED + zlib.compress(text, _LEVEL)
    return DEFLATED + await asyncio.to_thread(zlib.compress, text, _LEVEL)


def encode_failure(failure: Failure) -> bytes:
    """As those are told who share it: all, or those that have another model to ask."""
    return (FAILED if is_shared(failure) else LEFT) + orjson.dumps(
        {
            "is_over_limit": isinstance(failure, OverLimit),
            "code": failure.code,
            "message": failure.message,
            "http_status": failure.http_status,
            "retryable": failure.retryable,
            "provider_body": failure.provider_body,
        }
    )


def decode(data: bytes) -> Known | None:
    """What `encode` wrote; None for `NOTHING`. Raises the failure that `encode_failure` wrote, and ValueError."""
    mark, text = data[:1], data[1:]
    if mark == NOTHING:
        return None
    if mark in (FAILED, LEFT):
        told = orjson.loads(text)
        raise (OverLimit if told.pop("is_over_limit", False) else Failure)(**told)
    try:
        fields = orjson.loads(zlib.decompress(text) if mark == DEFLATED else text)
    except zlib.error:
        raise ValueError("not what was compressed") from None
    response, usage = fields["response"], fields["usage"]
    text_of = fields["text"] if "text" in fields else _first_text(response)
    answer = Answer(text_of, response, None if usage is None else Usage(*usage))
    return Known(answer, fields["answered_by"], fields["cost_usd"])


_counts = attrgetter(*(field.name for field in fields_of(Usage)))
"""In order; `dataclasses.asdict` takes ten times as long."""


def _first_text(response: dict[str, Any]) -> Any:
    try:
        return response["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        return None
