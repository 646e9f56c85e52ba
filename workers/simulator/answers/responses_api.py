"""OpenAI's Responses API: what is asked, and what is answered. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from ..draws import identity
from ..request import (
    ChatRequest,
    InvalidRequest,
    count_in,
    fields_of,
    message_text,
    message_tokens,
    model_of,
    numbers_in,
    prompt_hash,
    tier_in,
)
from .replies import CHARS_PER_TOKEN, CREATED_AT_S, TOKENS_PER_EVENT, Completion, named_event
from .structured import wanted

__all__ = ["read_response", "response_body", "response_events"]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def read_response(body: bytes) -> ChatRequest:
    """Read a body for `/v1/responses`. Raises `InvalidRequest`."""
    fields = fields_of(body)
    asked = fields.get("input")
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) and asked else asked
    if not isinstance(items, list) or not items:
        raise InvalidRequest("'input' must be a text, or a list of at least one item.", "input")
    texts = [message_text(item) for item in items if isinstance(item, dict) and "role" in item]
    if fields.get("background"):
        raise InvalidRequest("Nobody would come back for a response in the background.", "background")
    instructions = fields.get("instructions")
    system = instructions if isinstance(instructions, str) else ""
    return ChatRequest(
        model=model_of(fields),
        prompt_hash=prompt_hash(asked),
        prompt_tokens=message_tokens(texts, beside=len(system)),
        max_tokens=count_in(fields, "max_output_tokens"),
        choices=1,
        stream=fields.get("stream") is True,
        include_usage=True,
        numbers=numbers_in(texts[-1] if texts else ""),
        wanted=wanted(fields, system, texts) if "text" in fields or system else None,
        tier=tier_in(fields),
    )


def response_body(request: ChatRequest, completions: list[Completion], *, seed: int) -> bytes:
    """The JSON of a `response`."""
    return orjson.dumps(_response(request, completions[0], seed))


def response_events(
    request: ChatRequest, completions: list[Completion], *, seed: int, tokens_per_event: int = TOKENS_PER_EVENT
) -> list[bytes]:
    """The same answer as named server-sent events; the last one holds all of it."""
    response = _response(request, completions[0], seed)
    text, step = completions[0].text, tokens_per_event * CHARS_PER_TOKEN
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    place = {"output_index": 0, "content_index": 0, "item_id": f"msg_{identity(seed, request.prompt_hash)}"}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    events += [
        {"type": "response.output_text.delta", **place, "delta": text[at : at + step]}
        for at in range(0, len(text), step)
    ]
    events += [
        {"type": "response.output_item.done", "output_index": index, "item": item}
        for index, item in enumerate(response["output"])
    ]
    events.append({"type": f"response.{response['status']}", "response": response})
    return [named_event({**data, "sequence_number": number}) for number, data in enumerate(events)]


def _response(request: ChatRequest, completion: Completion, seed: int) -> dict[str, Any]:
    reason = _INCOMPLETE.get(completion.finish_reason)
    status = "incomplete" if reason else "completed"
    part = {"type": "output_text", "text": completion.text, "annotations": []}
    message = {
        "type": "message",
        "id": f"msg_{identity(seed, request.prompt_hash)}",
        "status": status,
        "role": "assistant",
        "content": [part],
    }
    return {
        "id": f"resp_{identity(seed, request.prompt_hash)}",
        "object": "response",
        "created_at": CREATED_AT_S,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": request.model,
        **request.served,
        "output": [message] if completion.text else [],
        "usage": {
            "input_tokens": request.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": request.prompt_tokens + completion.tokens,
        },
    }
