"""What the provider answers: OpenAI's bodies, with text, vectors and token counts drawn from the seed. No I/O.

The answer to a request depends on the seed and on what is asked, not on when or how often it is asked: two runs
give the same bytes, the `created` time included.
"""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import shake_256
from typing import Any

import orjson

from ..draws import identity, lognormal, uniforms
from ..request import ChatRequest, EmbeddingRequest
from .objects import fitting_object
from .structured import Wanted

__all__ = [
    "CREATED_AT_S",
    "DONE_EVENT",
    "MODELS",
    "Completion",
    "ErrorParts",
    "chat_body",
    "chat_events",
    "complete",
    "embedding_body",
    "error_body",
    "event",
    "models_body",
    "named_event",
    "object_text",
    "usage_of",
    "vector_of",
]

MODELS = (
    "gpt-4o-mini",
    "gpt-4o",
    "gpt-4.1",
    "claude-sonnet-4.5",
    "gemini-2.5-flash",
    "deepseek-v3.2",
    "text-embedding-3-small",
)
"""What `/v1/models` lists. Every other name is answered too."""

DONE_EVENT = b"data: [DONE]\n\n"

CREATED_AT_S = 1_750_000_000
CHARS_PER_TOKEN = 4
TOKENS_PER_EVENT = 4
_OUTPUT_SPREAD = 0.5
_LARGEST_ANSWER = 1_000

_OPENINGS = (
    "Let us take it one step at a time.",
    "Here is how I would work it out.",
    "This comes apart into a few small steps.",
    "First, what we know and what is asked.",
    "A short calculation settles this.",
)
_REASONS = (
    "We write down each quantity with its unit before we combine any of them.",
    "The first amount stays the same, so only the second one has to be followed.",
    "Adding the two parts gives the total that the next step starts from.",
    "That share has to be taken off again, because it was counted twice.",
    "Multiplying by the number of days turns the daily amount into the whole.",
    "What is left after that is divided evenly among everybody involved.",
    "It helps to check the order of magnitude: the result must stay below the total.",
    "Nothing in the question changes this rate, so it holds for the whole time.",
    "The remaining part follows by subtraction from what we started with.",
    "Put together, these steps lead straight to the amount that is asked for.",
    "A quick estimate with rounded values comes out close to the same figure.",
    "Going backwards from the result reproduces the amounts that were given.",
)
_REASON_CHARS = 1 + sum(map(len, _REASONS)) // len(_REASONS)


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice of a chat completion. `tokens` counts its text; a "length" finish means it was cut."""

    text: str
    tokens: int
    finish_reason: str = "stop"

    def cut_to(self, tokens: int) -> Completion:
        """The same, truncated."""
        return Completion(self.text[: tokens * CHARS_PER_TOKEN], tokens, "length")


@dataclass(frozen=True, slots=True)
class ErrorParts:
    """An error before it is put into a provider's words. `wait_s`: how long it would have the client wait."""

    message: str
    kind: str
    code: str | None = None
    param: str | None = None
    wait_s: float | None = None


def complete(request: ChatRequest, *, seed: int, mean_tokens: float) -> list[Completion]:
    """The choices of an answer; each has a log-normal number of tokens, capped by what the request permits.

    A request with a schema gets an object that fits it, the same however it is asked for.
    """
    if request.wanted is not None:
        return [_object(request, request.wanted, seed, choice) for choice in range(request.choices)]
    return [_completion(request, _draws(request, seed, choice), mean_tokens) for choice in range(request.choices)]


def chat_body(request: ChatRequest, completions: list[Completion], *, seed: int) -> bytes:
    """The JSON of a `chat.completion`."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(completions)
    ]
    head = _head(request, seed, "chat.completion")
    return orjson.dumps({**head, "choices": choices, "usage": usage_of(request, completions)})


def chat_events(
    request: ChatRequest, completions: list[Completion], *, seed: int, tokens_per_event: int = TOKENS_PER_EVENT
) -> list[bytes]:
    """The same answer as server-sent events, ended by `[DONE]`."""
    head = _head(request, seed, "chat.completion.chunk")
    usage: dict[str, Any] = {"usage": None} if request.include_usage else {}
    events = [
        event(orjson.dumps({**head, "choices": [choice], **usage}))
        for index, completion in enumerate(completions)
        for choice in _deltas(index, completion, tokens_per_event)
    ]
    if request.include_usage:
        events.append(event(orjson.dumps({**head, "choices": [], "usage": usage_of(request, completions)})))
    return [*events, DONE_EVENT]


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % data


def named_event(data: dict[str, Any]) -> bytes:
    """One server-sent event with the name of its type."""
    return b"event: %b\n%b" % (data["type"].encode(), event(orjson.dumps(data)))


def embedding_body(request: EmbeddingRequest, *, seed: int, dimensions: int) -> bytes:
    """The JSON list of one unit vector for each input; equal texts have equal vectors."""
    size = request.dimensions or dimensions
    vectors = (vector_of(each, seed=seed, model=request.model, dimensions=size) for each in request.input_hashes)
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _packed(v) if request.base64 else list(v)}
                for index, v in enumerate(vectors)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": request.prompt_tokens, "total_tokens": request.prompt_tokens},
        }
    )


def models_body() -> bytes:
    """The JSON list of `MODELS`."""
    rows = [{"id": name, "object": "model", "created": CREATED_AT_S, "owned_by": "simulator"} for name in MODELS]
    return orjson.dumps({"object": "list", "data": rows})


def error_body(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's JSON of an error; `kind` is its `type`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _draws(request: ChatRequest, seed: int, choice: int) -> tuple[float, ...]:
    return uniforms(seed, f"answer {choice} of {request.model}", request.prompt_hash.encode())


def _completion(request: ChatRequest, draws: tuple[float, ...], mean_tokens: float) -> Completion:
    wished = max(1, round(lognormal(draws[0], mean=mean_tokens, spread=_OUTPUT_SPREAD)))
    text = _text(request.numbers, draws[1:], chars=wished * CHARS_PER_TOKEN)
    if request.max_tokens is None or wished <= request.max_tokens:
        return Completion(text, wished)
    return Completion(text, wished).cut_to(request.max_tokens)


def object_text(wanted: Wanted, *, model: str, seed: int, choice: int = 0) -> str:
    """The JSON that fits a schema."""
    key = b"%d:%b:%b" % (choice, model.encode(), wanted.subject)
    return orjson.dumps(fitting_object(wanted.schema, seed=seed, key=key)).decode()


def _object(request: ChatRequest, wanted: Wanted, seed: int, choice: int) -> Completion:
    text = object_text(wanted, model=request.model, seed=seed, choice=choice)
    tokens = math.ceil(len(text) / CHARS_PER_TOKEN)
    if request.max_tokens is None or tokens <= request.max_tokens:
        return Completion(text, tokens)
    return Completion(text, tokens).cut_to(request.max_tokens)


def _text(numbers: tuple[str, ...], draws: tuple[float, ...], *, chars: int) -> str:
    """About `chars` characters in whole sentences: an opening, reasons, the answer."""
    opening, first, answer = draws[0], draws[1], draws[2]
    parts = [_OPENINGS[int(opening * len(_OPENINGS))]]
    if numbers:
        parts.append(f"The question gives us {_listed(numbers)}.")
    ending = f"So the answer is {1 + int(answer * _LARGEST_ANSWER)}."
    room = chars - sum(map(len, parts)) - len(ending)
    parts += _reasons(start=int(first * len(_REASONS)), count=max(0, round(room / _REASON_CHARS)))
    return " ".join([*parts, ending])


def _listed(numbers: tuple[str, ...]) -> str:
    *most, last = numbers
    return f"{', '.join(most)} and {last}" if most else last


def _reasons(*, start: int, count: int) -> Iterable[str]:
    return (_REASONS[(start + n) % len(_REASONS)] for n in range(count))


def _head(request: ChatRequest, seed: int, kind: str) -> dict[str, Any]:
    own_id = f"chatcmpl-{identity(seed, request.prompt_hash)}"
    return {"id": own_id, "object": kind, "created": CREATED_AT_S, "model": request.model, **request.served}


def usage_of(request: ChatRequest, completions: list[Completion]) -> dict[str, Any]:
    """What OpenAI counts."""
    output = sum(completion.tokens for completion in completions)
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": request.prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _deltas(index: int, completion: Completion, tokens_per_event: int) -> Iterator[dict[str, Any]]:
    def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    step = tokens_per_event * CHARS_PER_TOKEN
    yield choice({"role": "assistant", "content": ""})
    for start in range(0, len(completion.text), step):
        yield choice({"content": completion.text[start : start + step]})
    yield choice({}, completion.finish_reason)


def vector_of(input_hash: bytes, *, seed: int, model: str, dimensions: int) -> array[float]:
    """A unit vector of 32-bit floats, a function of the input, the model and the seed alone. `encoding_format: base64`
    sends them as they are.
    """
    noise = array("h", shake_256(b"%d:%b:%b" % (seed, model.encode(), input_hash)).digest(2 * dimensions))
    if sys.byteorder == "big":
        noise.byteswap()
    length = math.sqrt(sum(x * x for x in noise)) or 1.0
    return array("f", [x / length for x in noise])


def _packed(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector.byteswap()
    return b64encode(vector).decode()
