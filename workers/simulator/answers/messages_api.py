"""Anthropic's Messages API: what is asked, and what is answered. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from ..draws import identity
from ..request import ChatRequest, InvalidRequest, fields_of, message_tokens, model_of, numbers_in, prompt_hash
from .replies import CHARS_PER_TOKEN, TOKENS_PER_EVENT, Completion, named_event
from .structured import wanted

__all__ = ["error_body", "message_body", "message_events", "read_message"]

_FIELDS = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "system",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "stream",
        "metadata",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "service_tier",
        "container",
        "cache_control",
        "inference_geo",
    ]
)
_BLOCKS = frozenset(
    [
        "text",
        "image",
        "document",
        "tool_use",
        "tool_result",
        "thinking",
        "redacted_thinking",
        "search_result",
        "server_tool_use",
        "web_search_tool_result",
    ]
)
_STOPPED = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_BOUNDS = frozenset(["minimum", "maximum", "multipleOf", "minLength", "maxLength", "maxItems", "maxProperties"])


def read_message(body: bytes) -> ChatRequest:
    """Read a body for `/v1/messages`, as strictly as Anthropic does. Raises `InvalidRequest`."""
    fields = fields_of(body)
    if unknown := fields.keys() - _FIELDS:
        name = sorted(unknown)[0]
        raise InvalidRequest(f"{name}: Extra inputs are not permitted", name)
    model = model_of(fields)
    max_tokens, messages = fields.get("max_tokens"), fields.get("messages")
    if type(max_tokens) is not int or max_tokens < 1:
        raise InvalidRequest("max_tokens: Field required", "max_tokens")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages: at least one message is required", "messages")
    texts = [_text(message, index) for index, message in enumerate(messages)]
    temperature = fields.get("temperature", 1)
    if not isinstance(temperature, int | float) or not 0 <= temperature <= 1:
        raise InvalidRequest("temperature: range: 0..1", "temperature")
    system = _plain(fields.get("system"))
    users = [text for message, text in zip(messages, texts, strict=True) if message["role"] == "user"]
    form = wanted(fields, system, users)
    if form is not None:
        _check_schema(form.schema)
    return ChatRequest(
        model=model,
        prompt_hash=prompt_hash(messages),
        prompt_tokens=message_tokens([system, *texts], beside=form.chars if form else 0),
        max_tokens=max_tokens,
        choices=1,
        stream=fields.get("stream") is True,
        include_usage=True,
        numbers=numbers_in(texts[-1]),
        wanted=form,
    )


def _check_schema(schema: Any) -> None:
    """Its grammar holds neither bounds nor open objects."""
    found = [schema]
    for each in found:
        if isinstance(each, dict):
            for name in _BOUNDS & each.keys():
                if isinstance(each[name], int | float):
                    raise InvalidRequest(f"output_config.format.schema: property '{name}' is not supported")
            if each.get("type") == "object" and each.get("additionalProperties") is not False:
                raise InvalidRequest("output_config.format.schema: 'additionalProperties' must be explicitly false")
            found += each.values()
        elif isinstance(each, list):
            found += each


def message_body(request: ChatRequest, completions: list[Completion], *, seed: int) -> bytes:
    """The JSON of a `message`."""
    [completion] = completions
    content = [{"type": "text", "text": completion.text}] if completion.text else []
    return orjson.dumps(
        {
            **_head(request, seed),
            "content": content,
            "stop_reason": _STOPPED[completion.finish_reason],
            "stop_sequence": None,
            "usage": _usage(request, completion.tokens),
        }
    )


def message_events(
    request: ChatRequest, completions: list[Completion], *, seed: int, tokens_per_event: int = TOKENS_PER_EVENT
) -> list[bytes]:
    """The same answer as named server-sent events."""
    [completion] = completions
    start = {**_head(request, seed), "content": [], "stop_reason": None, "usage": _usage(request, 1)}
    step = tokens_per_event * CHARS_PER_TOKEN
    pieces = [completion.text[at : at + step] for at in range(0, len(completion.text), step)]
    stop = {"stop_reason": _STOPPED[completion.finish_reason], "stop_sequence": None}
    return [
        named_event({"type": "message_start", "message": start}),
        named_event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        *(
            named_event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}})
            for piece in pieces
        ),
        named_event({"type": "content_block_stop", "index": 0}),
        named_event({"type": "message_delta", "delta": stop, "usage": {"output_tokens": completion.tokens}}),
        named_event({"type": "message_stop"}),
    ]


def error_body(status: int, message: str) -> bytes:
    """Anthropic's JSON of an error."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def _head(request: ChatRequest, seed: int) -> dict[str, Any]:
    return {
        "id": f"msg_{identity(seed, request.prompt_hash)}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
    }


def _usage(request: ChatRequest, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": request.prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _text(message: Any, index: int) -> str:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise InvalidRequest(f"messages.{index}.role: Input should be 'user' or 'assistant'", "messages")
    if unknown := message.keys() - {"role", "content"}:
        raise InvalidRequest(f"messages.{index}.{sorted(unknown)[0]}: Extra inputs are not permitted", "messages")
    content = message.get("content")
    if isinstance(content, list):
        for block in content:
            if not isinstance(block, dict) or str(block.get("type")) not in _BLOCKS:
                raise InvalidRequest(f"messages.{index}.content: unknown block type", "messages")
    elif not isinstance(content, str) or not content:
        raise InvalidRequest(f"messages.{index}: text content blocks must be non-empty", "messages")
    return _plain(content)


def _plain(content: Any) -> str:
    if isinstance(content, list):
        texts = (block.get("text") for block in content if isinstance(block, dict))
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
