"""OpenAI's Responses API: text, refusals and what tools bring, in a list of items."""

from __future__ import annotations

from typing import Any, Final

from tasks.wire.texts import response_text
from tasks.wire.usage import read_usage

from ...prompt.failure import Failure
from ..answers import Content, bad_response
from ..codec import Answer

__all__ = ["is_whole_response", "read_response"]

_UNFINISHED: Final = frozenset({"queued", "in_progress"})


def read_response(body: dict[str, Any]) -> Answer:
    """The answer in a response without an error: text, a refusal, or what a tool brought or is to bring.

    As of a chat, the beginning of a text that was cut or filtered is an answer too; `status` tells.
    """
    output, status = body.get("output"), body.get("status")
    usage = read_usage(body)
    if not isinstance(output, list):
        raise bad_response("the answer has no output")
    if isinstance(status, str) and status in _UNFINISHED:
        raise Failure("bad_response", "the provider sent a response that is not finished", usage=usage)
    items = [item for item in output if isinstance(item, dict)]
    content = Content(
        text=response_text(body),
        has_other=any(map(_is_other, items)),
        has_message=bool(items),
        has_reasoning=any(item.get("type") == "reasoning" for item in items),
        reason=_reason(body, status),
        limit="max_output_tokens",
    )
    if content.is_answer:
        return Answer(content.text or None, body, usage)
    failure = content.failure()
    failure.usage = usage
    raise failure


def is_whole_response(body: dict[str, Any]) -> bool:
    """Whether nothing of it was cut off, refused or filtered."""
    items = body.get("output")
    if body.get("status") != "completed" or not isinstance(items, list):
        return False
    return not any(_has_refusal(item) for item in items if isinstance(item, dict))


def _reason(body: dict[str, Any], status: Any) -> str:
    if status in ("failed", "cancelled"):
        return "error"
    details = body.get("incomplete_details")
    return str(details.get("reason") or "").lower() if isinstance(details, dict) else ""


def _is_other(item: dict[str, Any]) -> bool:
    """Whether it is part of an answer beside its text. Reasoning is none."""
    kind = item.get("type")
    return _has_refusal(item) if kind == "message" else isinstance(kind, str) and kind != "reasoning"


def _has_refusal(item: dict[str, Any]) -> bool:
    parts = item.get("content")
    return isinstance(parts, list) and any(
        isinstance(part, dict) and part.get("type") == "refusal" and bool(part.get("refusal")) for part in parts
    )
