"""What a client asks for, read from the body of its request. No I/O."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import orjson

from .answers.structured import Wanted, wanted

__all__ = [
    "FLEX",
    "ChatRequest",
    "EmbeddingRequest",
    "InvalidRequest",
    "asks_for_usage",
    "count_in",
    "fields_of",
    "message_text",
    "message_tokens",
    "model_of",
    "numbers_in",
    "prompt_hash",
    "read_chat",
    "read_embedding",
    "tier_in",
]

FLEX = "flex"
_TIERS = (FLEX, "priority")
_CHARS_PER_TOKEN = 4
_MAX_CHOICES = 128
_MAX_DIMENSIONS = 4096
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# Enough for any question; a 20 MB prompt must not be searched through for its numbers.
_NUMBERS_SOUGHT_CHARS = 2_000
_NUMBERS_KEPT = 4


class InvalidRequest(ValueError):
    """The body is not a request that can be answered. `param` names the field, if it is one; `code` the error."""

    def __init__(self, message: str, param: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion. The prompt itself is not kept: only its hash, its size and the numbers in it."""

    model: str
    prompt_hash: str
    prompt_tokens: int
    max_tokens: int | None
    choices: int
    stream: bool
    include_usage: bool
    numbers: tuple[str, ...] = field(repr=False)
    wanted: Wanted | None = field(default=None, repr=False)
    """The schema that its answer is to fit."""
    tier: str | None = None
    """The `service_tier` that it names."""

    @property
    def served(self) -> dict[str, str]:
        """What the answer says of the tier, if the request names one."""
        return {} if self.tier is None else {"service_tier": self.tier if self.tier in _TIERS else "default"}


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Embeddings of one or many texts, each known by its hash alone. `dimensions` None = the server's default."""

    model: str
    prompt_hash: str
    prompt_tokens: int
    input_hashes: tuple[bytes, ...] = field(repr=False)
    dimensions: int | None
    base64: bool
    input_tokens: tuple[int, ...] = ()


def prompt_hash(messages_or_input: Any) -> str:
    """SHA-256, in hex, of the canonical JSON (sorted keys, no spaces) of `messages` or `input`."""
    return sha256(_canonical(messages_or_input)).hexdigest()


def read_chat(body: bytes) -> ChatRequest:
    """Read a body for `/v1/chat/completions`. Raises `InvalidRequest`."""
    fields = fields_of(body)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list of at least one message.", "messages")
    texts = [message_text(message) for message in messages]
    form = _wanted(fields, messages, texts)
    return ChatRequest(
        model=model_of(fields),
        prompt_hash=prompt_hash(messages),
        prompt_tokens=message_tokens(texts, beside=form.chars if form else 0),
        max_tokens=count_in(fields, "max_completion_tokens") or count_in(fields, "max_tokens"),
        choices=count_in(fields, "n", at_most=_MAX_CHOICES) or 1,
        stream=fields.get("stream") is True,
        include_usage=asks_for_usage(fields),
        numbers=numbers_in(texts[-1]),
        wanted=form,
        tier=tier_in(fields),
    )


def read_embedding(body: bytes) -> EmbeddingRequest:
    """Read a body for `/v1/embeddings`: `input` is a text, tokens, or a list of either. Raises `InvalidRequest`."""
    fields = fields_of(body)
    asked = fields.get("input")
    inputs: list[Any] = asked if isinstance(asked, list) and not _is_tokens(asked) else [asked]
    if not inputs or not all(_is_input(item) for item in inputs):
        raise InvalidRequest("'input' must be a text or tokens, or a list of them, none of it empty.", "input")
    tokens = tuple(_tokens(len(item)) if isinstance(item, str) else len(item) for item in inputs)
    return EmbeddingRequest(
        model=model_of(fields),
        prompt_hash=prompt_hash(asked),
        prompt_tokens=sum(tokens),
        input_tokens=tokens,
        input_hashes=tuple(sha256(_canonical(item)).digest() for item in inputs),
        dimensions=count_in(fields, "dimensions", at_most=_MAX_DIMENSIONS),
        base64=fields.get("encoding_format") == "base64",
    )


def fields_of(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `InvalidRequest`."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body of the request is not JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body of the request must be a JSON object.")
    return fields


def model_of(fields: dict[str, Any]) -> str:
    """The model that is asked for. Raises `InvalidRequest`."""
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("You must provide a 'model'.", "model")
    return model


def asks_for_usage(fields: dict[str, Any]) -> bool:
    """Whether a streamed answer is to end with its usage."""
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def tier_in(fields: dict[str, Any]) -> str | None:
    """The `service_tier` that a request names."""
    return tier if isinstance(tier := fields.get("service_tier"), str) else None


def count_in(fields: dict[str, Any], name: str, *, at_most: int | None = None) -> int | None:
    """The whole number of a field, None where there is none. Raises `InvalidRequest`."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (at_most and value > at_most):
        upper = f" and at most {at_most}" if at_most else ""
        raise InvalidRequest(f"'{name}' must be a whole number of at least 1{upper}.", name)
    return value


def message_text(message: Any) -> str:
    """The text of a message. Raises `InvalidRequest`."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidRequest("Each of the 'messages' must be an object with a 'role'.", "messages")
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and _has_text(part))
    return content if isinstance(content, str) else ""


def _wanted(fields: dict[str, Any], messages: list[Any], texts: list[str]) -> Wanted | None:
    first = messages[0]["role"]
    if "response_format" not in fields and first != "system":
        return None
    system = texts[0] if first == "system" else ""
    users = [text for message, text in zip(messages, texts, strict=True) if message["role"] == "user"]
    return wanted(fields, system, users)


def _has_text(part: dict[str, Any]) -> bool:
    return isinstance(part.get("text"), str)


def _is_input(item: Any) -> bool:
    return bool(item) and (isinstance(item, str) or _is_tokens(item))


def _is_tokens(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(token, int) for token in item)


def message_tokens(texts: list[str], *, beside: int = 0) -> int:
    """What a prompt of these texts counts, with so many characters `beside` its messages."""
    return _tokens(sum(map(len, texts)) + beside)


def _tokens(chars: int) -> int:
    return max(1, math.ceil(chars / _CHARS_PER_TOKEN))


def numbers_in(text: str) -> tuple[str, ...]:
    """The first numbers of a prompt, which its answer mentions."""
    return tuple(_NUMBER.findall(text[:_NUMBERS_SOUGHT_CHARS])[:_NUMBERS_KEPT])


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
