"""An answer of the Messages API, as a chat completion."""

from __future__ import annotations

from typing import Any, TypeGuard

import orjson

from ...prompt.failure import Failure
from .messages import OWN_CONTENT

__all__ = ["chat_completion"]

_FINISHED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # Anthropic's server paused its own tools: the turn is not whole, and goes on when it is sent back.
    "pause_turn": "length",
}

_PLAIN_BLOCKS = ("text", "tool_use")
"""No set: any JSON value may stand in a block's `type`."""

_TRANSLATED = frozenset({"id", "type", "role", "model", "content"})

Fields = dict[str, Any]


def chat_completion(message: Fields, *, now: float) -> Fields:
    """The message in OpenAI's shape; Anthropic's own fields stand under `provider_fields`. `now` in epoch seconds.

    Blocks that OpenAI's message has no place for, such as signed thinking, stand under the message's own
    `provider_fields`, all blocks in their order: sent back in the next request's messages, they replace its text.

    Raises `Failure` (`bad_response`) for what is no message.
    """
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise Failure("bad_response", "the answer has no content blocks", retryable=True)
    reason = message.get("stop_reason")
    choice = {
        "index": 0,
        "message": _message(content),
        "logprobs": None,
        "finish_reason": _FINISHED.get(reason, "stop") if isinstance(reason, str) else None,
    }
    return {
        "id": message.get("id"),
        "object": "chat.completion",
        "created": int(now),
        "model": message.get("model"),
        "choices": [choice],
        "usage": _usage(message.get("usage")),
        "provider_fields": {name: value for name, value in message.items() if name not in _TRANSLATED},
    }


def _message(content: list[Fields]) -> Fields:
    texts = [block["text"] for block in content if block.get("type") == "text" and isinstance(block.get("text"), str)]
    calls = [_call(block) for block in content if block.get("type") == "tool_use"]
    message: Fields = {"role": "assistant", "content": "".join(texts) or None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    if any(block.get("type") not in _PLAIN_BLOCKS or block.get("citations") for block in content):
        message["provider_fields"] = {OWN_CONTENT: content}
    return message


def _call(block: Fields) -> Fields:
    return {
        "id": block.get("id"),
        "type": "function",
        "function": {"name": block.get("name"), "arguments": orjson.dumps(block.get("input") or {}).decode()},
    }


def _usage(usage: Any) -> Fields | None:
    """OpenAI's count. Anthropic's `input_tokens` leaves out what was read from and written to its cache."""
    if not isinstance(usage, dict) or not _is_count(usage.get("input_tokens")):
        return None
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    prompt, completion = _count(usage, "input_tokens") + read + written, _count(usage, "output_tokens")
    details = usage.get("output_tokens_details")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {
            "reasoning_tokens": _count(details, "thinking_tokens") if isinstance(details, dict) else 0
        },
    }


def _count(usage: Fields, name: str) -> int:
    value = usage.get(name)
    return value if _is_count(value) else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0
