"""Completions and moderations: what is asked, and what is answered. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from ..draws import identity, uniforms
from ..request import (
    ChatRequest,
    InvalidRequest,
    asks_for_usage,
    count_in,
    fields_of,
    message_tokens,
    model_of,
    numbers_in,
    prompt_hash,
    read_embedding,
)
from .replies import CHARS_PER_TOKEN, CREATED_AT_S, DONE_EVENT, TOKENS_PER_EVENT, Completion, event, usage_of

__all__ = [
    "ModerationRequest",
    "completion_body",
    "completion_events",
    "moderation_body",
    "read_completion",
    "read_moderation",
]

_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
_FLAGGED_FROM = 0.9


@dataclass(frozen=True, slots=True)
class ModerationRequest:
    """Texts, or parts that are judged together, each known by its hash alone."""

    model: str
    prompt_hash: str
    prompt_tokens: int
    input_hashes: tuple[bytes, ...] = field(repr=False)


def read_completion(body: bytes) -> ChatRequest:
    """Read a body for `/v1/completions`: `prompt` is as an embedding's input. Raises `InvalidRequest`."""
    fields = fields_of(body)
    asked = fields.get("prompt")
    try:
        prompts = read_embedding(orjson.dumps({"model": model_of(fields), "input": asked}))
    except InvalidRequest as error:
        raise InvalidRequest(str(error).replace("'input'", "'prompt'"), "prompt") from None
    return ChatRequest(
        model=prompts.model,
        prompt_hash=prompts.prompt_hash,
        prompt_tokens=prompts.prompt_tokens,
        max_tokens=count_in(fields, "max_tokens"),
        choices=(count_in(fields, "n") or 1) * len(prompts.input_hashes),
        stream=fields.get("stream") is True,
        include_usage=asks_for_usage(fields),
        numbers=numbers_in(asked) if isinstance(asked, str) else (),
    )


def completion_body(request: ChatRequest, completions: list[Completion], *, seed: int) -> bytes:
    """The JSON of a `text_completion`."""
    choices = [
        _choice(index, completion.text, completion.finish_reason) for index, completion in enumerate(completions)
    ]
    return orjson.dumps({**_head(request, seed), "choices": choices, "usage": usage_of(request, completions)})


def completion_events(
    request: ChatRequest, completions: list[Completion], *, seed: int, tokens_per_event: int = TOKENS_PER_EVENT
) -> list[bytes]:
    """The same answer as server-sent events, ended by `[DONE]`."""
    head, step = _head(request, seed), tokens_per_event * CHARS_PER_TOKEN
    choices = [
        choice
        for index, completion in enumerate(completions)
        for choice in [
            *(_choice(index, completion.text[at : at + step]) for at in range(0, len(completion.text), step)),
            _choice(index, "", completion.finish_reason),
        ]
    ]
    chunks: list[dict[str, Any]] = [{**head, "choices": [choice]} for choice in choices]
    if request.include_usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
        chunks.append({**head, "choices": [], "usage": usage_of(request, completions)})
    return [*(event(orjson.dumps(chunk)) for chunk in chunks), DONE_EVENT]


def _head(request: ChatRequest, seed: int) -> dict[str, Any]:
    own_id = f"cmpl-{identity(seed, request.prompt_hash)}"
    return {"id": own_id, "object": "text_completion", "created": CREATED_AT_S, "model": request.model}


def _choice(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def read_moderation(body: bytes) -> ModerationRequest:
    """Read a body for `/v1/moderations`: a text, texts, or parts that are judged together. Raises `InvalidRequest`."""
    fields = fields_of(body)
    asked = fields.get("input")
    inputs: list[Any] = asked if isinstance(asked, list) and all(isinstance(each, str) for each in asked) else [asked]
    if not all(inputs) or not inputs:
        raise InvalidRequest("'input' must be a text, or a list of texts or parts, none of it empty.", "input")
    return ModerationRequest(
        model=model_of(fields),
        prompt_hash=prompt_hash(asked),
        prompt_tokens=message_tokens([each for each in inputs if isinstance(each, str)]),
        input_hashes=tuple(bytes.fromhex(prompt_hash(each)) for each in inputs),
    )


def moderation_body(request: ModerationRequest, *, seed: int) -> bytes:
    """The JSON verdicts; equal texts have equal ones. No usage: moderation counts no tokens."""
    return orjson.dumps(
        {
            "id": f"modr-{identity(seed, request.prompt_hash)}",
            "model": request.model,
            "results": [_verdict(each, seed) for each in request.input_hashes],
        }
    )


def _verdict(input_hash: bytes, seed: int) -> dict[str, Any]:
    scores = {name: uniforms(seed, f"moderation {name}", input_hash)[0] ** 2 for name in _CATEGORIES}
    categories = {name: score >= _FLAGGED_FROM for name, score in scores.items()}
    return {"flagged": any(categories.values()), "categories": categories, "category_scores": scores}
