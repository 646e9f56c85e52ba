"""Is this 200 an answer? Chat completions and embeddings in OpenAI's shape, checked before anybody pays for trust.

A provider or gateway that says 200 may still send an error, nothing, HTML or half an object. Whatever it sends,
these functions return an `Answer` or raise `Failure`: `bad_response`, retryable unless the same request can only
bring the same again.
"""

from __future__ import annotations

import array
import base64
import math
from typing import TYPE_CHECKING, Any

import orjson

from tasks.results import Usage

from ..prompt.failure import Failure
from ..prompt.job import MAX_DEPTH
from .codec import Answer

if TYPE_CHECKING:
    from ..prompt.job import PromptJob

__all__ = ["count_inputs", "read_chat", "read_embeddings", "read_object"]

_NUMBERS = {int, float}


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a response's body. Anything else is a `bad_response`."""
    try:
        # orjson is strict (no NaN, no broken UTF-8) and stops at 1,024 levels by itself.
        parsed = orjson.loads(body)
    except ValueError:
        raise _bad(_not_json(body)) from None
    if not isinstance(parsed, dict):
        raise _bad(f"the answer is a JSON {_json_type(parsed)}, not an object")
    if parsed.get("error"):
        raise _bad("the provider said 200 and sent an error in the body")
    # Fewer brackets than levels can't nest too deep; counting them is far cheaper than walking.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth_exceeds(parsed, MAX_DEPTH):
        raise _bad(f"the answer nests deeper than {MAX_DEPTH} levels")
    return parsed


def read_chat(body: dict[str, Any]) -> Answer:
    """The answer in a chat completion: text, a tool call, a refusal or audio in its first choice."""
    choice = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _bad("the answer's first choice has no message")
    text = _text(message.get("content"))
    if not text and not _has_other_content(message):
        raise _no_content(choice.get("finish_reason"))
    return Answer(text or None, body, read_usage(body))


def read_embeddings(body: dict[str, Any], job: PromptJob) -> Answer:
    """The answer in an embeddings response: one vector of finite numbers for each input, all of one length."""
    rows = body.get("data")
    count = count_inputs(job.body["input"])
    if not isinstance(rows, list) or len(rows) != count:
        found = len(rows) if isinstance(rows, list) else "no"
        raise _bad(f"the answer holds {found} embeddings for {count} inputs")
    if sorted(map(_index, rows)) != list(range(count)):
        raise _bad("the embeddings' indexes do not match the inputs")
    if len({_dimensions(row.get("embedding")) for row in rows}) != 1:
        raise _bad("the embeddings differ in length")
    return Answer(None, body, read_usage(body))


def read_usage(body: dict[str, Any]) -> Usage | None:
    """What the provider counted; None if it counted nothing."""
    usage = body.get("usage")
    if not isinstance(usage, dict) or not _tokens(usage, "prompt_tokens"):
        return None
    details = usage.get("prompt_tokens_details")
    cached = _tokens(details, "cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        input_tokens=_tokens(usage, "prompt_tokens"),
        output_tokens=_tokens(usage, "completion_tokens"),
        # DeepSeek's own field for the same number.
        cached_tokens=cached or _tokens(usage, "prompt_cache_hit_tokens"),
    )


def _tokens(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else 0


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _bad("the answer has no choices")
    first: dict[str, Any] = choices[0]
    return first


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    # Some providers send the text in parts.
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(part for part in parts if isinstance(part, str))


def _has_other_content(message: dict[str, Any]) -> bool:
    return any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio"))


def _no_content(finish_reason: Any) -> Failure:
    if finish_reason == "content_filter":
        return Failure("content_filter", "the provider's content filter withheld the answer")
    if finish_reason == "length":
        # Reasoning models do this; sending it again costs the same and brings the same.
        return Failure(
            "bad_response", "the model spent all its output tokens before it wrote any text; raise max_tokens"
        )
    return _bad("the answer has no content")


def count_inputs(value: Any) -> int:
    """How many inputs an embeddings request holds: a string or one list of token ids counts as one."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return len(value)
    return 1


def _index(row: Any) -> int:
    index = row.get("index") if isinstance(row, dict) else None
    return index if type(index) is int else -1


def _dimensions(vector: Any) -> int:
    if isinstance(vector, str):
        vector = _from_base64(vector)
    if not isinstance(vector, list) or not vector or not set(map(type, vector)) <= _NUMBERS:
        raise _bad("an embedding is not a list of numbers")
    return len(vector)


def _from_base64(text: str) -> list[float]:
    """The numbers of an embedding that was asked for with `encoding_format="base64"`: packed 32-bit floats."""
    try:
        numbers = array.array("f", base64.b64decode(text, validate=True)).tolist()
    except ValueError:
        raise _bad("an embedding is not valid base64") from None
    if not all(map(math.isfinite, numbers)):
        raise _bad("an embedding holds NaN or an infinite number")
    return numbers


def _depth_exceeds(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict | list)]


def _not_json(body: bytes) -> str:
    start = body[:64].lstrip()
    if not start:
        return "the answer is empty"
    if start.startswith(b"<"):
        return "the answer is HTML, not JSON; is the provider's base_url right?"
    return "the answer is not valid JSON"


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "array", str: "string", bool: "boolean"}.get(type(value), "number")


def _bad(message: str) -> Failure:
    return Failure("bad_response", message, retryable=True)
