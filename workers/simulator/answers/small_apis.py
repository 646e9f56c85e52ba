"""Completions and moderations: what is asked, and what is answered. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from ..draws import identity, uniforms
from ..request import (
    ChatRequest,
    InvalidRequest,
    count_in,
    fields_of,
    message_tokens,
    model_of,
    numbers_in,
    prompt_hash,
    read_embedding,
)
from .replies import CREATED_AT_S, Completion, usage_of

__all__ = ["ModerationRequest", "completion_body", "moderation_body", "read_completion", "read_moderation"]

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
    if fields.get("stream"):
        raise InvalidRequest("Completions come whole here.", "stream")
    return ChatRequest(
        model=prompts.model,
        prompt_hash=prompts.prompt_hash,
        prompt_tokens=prompts.prompt_tokens,
        max_tokens=count_in(fields, "max_tokens"),
        choices=(count_in(fields, "n") or 1) * len(prompts.input_hashes),
        stream=False,
        include_usage=True,
        numbers=numbers_in(asked) if isinstance(asked, str) else (),
    )


def completion_body(request: ChatRequest, completions: list[Completion], *, seed: int) -> bytes:
    """The JSON of a `text_completion`."""
    choices = [
        {"index": index, "text": completion.text, "logprobs": None, "finish_reason": completion.finish_reason}
        for index, completion in enumerate(completions)
    ]
    return orjson.dumps(
        {
            "id": f"cmpl-{identity(seed, request.prompt_hash)}",
            "object": "text_completion",
            "created": CREATED_AT_S,
            "model": request.model,
            "choices": choices,
            "usage": usage_of(request, completions),
        }
    )


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
