"""Is this 200 an answer? Chat completions and embeddings in OpenAI's shape, checked before anybody pays for trust.

A provider or gateway that says 200 may still send an error, nothing, HTML or half an object. Whatever it sends,
these functions return an `Answer` or raise `Failure`: `bad_response`, retryable unless the same request can only
bring the same again, or what the error within it means.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from tasks.wire.usage import read_usage
from tasks.wire.vectors import floats_of

from ..prompt.failure import Failure
from ..prompt.job import MAX_DEPTH
from .codec import Answer
from .refusals import refusal_within

if TYPE_CHECKING:
    from ..prompt.job import PromptJob
    from .codec import RawResponse

__all__ = [
    "Content",
    "bad_response",
    "count_inputs",
    "count_token_ids",
    "is_filtered",
    "is_spent",
    "loads",
    "read_chat",
    "read_embeddings",
    "read_object",
    "text_of",
]

_NUMBERS = {int, float}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""A pair of surrogates, a lone one, or any other escape."""

_USUAL = ("stop", None, "length", "tool_calls")
"""With these a text is an answer, if only the beginning of one."""

_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
_OTHER_CONTENT = ("tool_calls", "function_call", "refusal", "audio", "images")
_OTHER_PARTS = ("image_url", "image", "inline_data", "input_audio", "audio", "file")

_FILTERED = re.compile(r"content_?filter.*|safety|recitation|prohibited_content|blocklist|spii|sensitive|refusal")
_SPENT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded"})
_BROKEN = frozenset({"error", "network_error", "abort", "insufficient_system_resource"})
"""Whatever text stands beside them is a piece of an answer."""

_ERROR_MARKS = ("message", "msg", "detail", "errors", "error_code", "error_msg", "base_resp")


def read_object(raw: RawResponse, *, now: float) -> dict[str, Any]:
    """The JSON object in a response's body. An error in it is that error; anything else is a `bad_response`."""
    body = raw.body
    try:
        # orjson is strict (no NaN, no broken UTF-8) and stops at 1,024 levels by itself.
        parsed = orjson.loads(body)
    except ValueError:
        parsed = loads(body)
    if not isinstance(parsed, dict):
        if isinstance(parsed, list) and parsed and isinstance(parsed[0], dict) and parsed[0].get("error"):
            raise refusal_within(parsed, raw, now=now)
        raise bad_response(f"the answer is a JSON {_json_type(parsed)}, not an object")
    if parsed.get("error") or (not parsed.get("choices") and not parsed.get("data") and _is_error(parsed)):
        raise refusal_within(parsed, raw, now=now)
    # Fewer brackets than levels can't nest too deep; counting them is far cheaper than walking.
    if _count(b"{", body) + _count(b"[", body) > MAX_DEPTH and _depth_exceeds(parsed, MAX_DEPTH):
        raise bad_response(f"the answer nests deeper than {MAX_DEPTH} levels")
    return parsed


def read_chat(body: dict[str, Any], raw: RawResponse, *, now: float) -> Answer:
    """The answer in a chat completion: text, a tool call, a refusal, a picture or a sound in one of its choices."""
    choices = body.get("choices")
    if type(choices) is not list or not choices or type(first := choices[0]) is not dict:
        raise bad_response("the answer has no choices")
    message = first.get("message")
    if (
        type(message) is dict
        and type(text := message.get("content")) is str
        and text
        and first.get("finish_reason") in _USUAL
    ):
        return Answer(text, body, read_usage(body))
    return _odd_chat(choices, body, raw, now=now)


def _odd_chat(choices: list[Any], body: dict[str, Any], raw: RawResponse, *, now: float) -> Answer:
    """The same where the first choice is no plain text that ended as usual."""
    usage = read_usage(body)
    found = [Content.of(choice) for choice in choices if isinstance(choice, dict)]
    if any(each.is_answer for each in found):
        return Answer(next((each.text for each in found if each.is_answer and each.text), None), body, usage)
    broken = next((choice for choice, each in zip(choices, found, strict=False) if each.is_broken), None)
    failure = found[0].failure() if broken is None else _broken(broken, raw, now=now)
    failure.usage = usage
    raise failure


class Content(NamedTuple):
    """What there is in a choice, or in a response: `limit` is the field of the request that cuts it."""

    text: str
    has_other: bool
    has_message: bool
    has_reasoning: bool
    reason: str
    limit: str = "max_tokens"

    @classmethod
    def of(cls, choice: dict[str, Any]) -> Self:
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        content = message.get("content")
        return cls(
            text=text_of(content),
            has_other=any(message.get(name) for name in _OTHER_CONTENT) or _has_other_part(content),
            has_message=bool(message),
            has_reasoning=any(message.get(name) for name in _REASONING),
            reason=str(choice.get("finish_reason") or "").lower(),
        )

    @property
    def is_broken(self) -> bool:
        return self.reason in _BROKEN

    @property
    def is_answer(self) -> bool:
        return bool(self.text or self.has_other) and not self.is_broken

    def failure(self) -> Failure:
        """Why it is no answer."""
        if is_filtered(self.reason):
            return Failure("content_filter", "the provider's content filter withheld the answer")
        if is_spent(self.reason):
            # Reasoning models do this; sending it again costs the same and brings the same.
            spent = Failure(
                "bad_response", f"the model spent all its output tokens before it wrote any text; raise {self.limit}"
            )
            spent.is_cut = True
            return spent
        if self.is_broken:
            return Failure("server_error", "the provider broke the answer off with an error", retryable=True)
        if self.has_reasoning:
            return Failure(
                "bad_response",
                "the model wrote its reasoning and no answer; if the answer stands in the reasoning, switch off the "
                "server's reasoning parser or the model's thinking",
            )
        return bad_response(
            "the answer has no content" if self.has_message else "the answer's first choice has no message"
        )


def _broken(choice: dict[str, Any], raw: RawResponse, *, now: float) -> Failure:
    if isinstance(choice.get("error"), dict):
        return refusal_within(choice, raw, now=now)
    return Failure("server_error", "the provider broke the answer off with an error", retryable=True)


def read_embeddings(body: dict[str, Any], job: PromptJob) -> Answer:
    """The answer in an embeddings response: one vector of finite numbers for each input, all of one length."""
    usage = read_usage(body, has_output=False)
    try:
        _check_embeddings(body.get("data"), count_inputs(job.body["input"]))
    except Failure as failure:
        failure.usage = usage
        raise
    return Answer(None, body, usage)


def _check_embeddings(rows: Any, count: int) -> None:
    if not isinstance(rows, list) or len(rows) != count:
        found = len(rows) if isinstance(rows, list) else "no"
        raise bad_response(f"the answer holds {found} embeddings for {count} inputs")
    if sorted(map(_index, rows, range(count))) != list(range(count)):
        raise bad_response("the embeddings' indexes do not match the inputs")
    if len({_dimensions(row.get("embedding")) for row in rows}) != 1:
        raise bad_response("the embeddings differ in length")


def _is_error(parsed: dict[str, Any]) -> bool:
    """Whether an object without an answer says what went wrong, in one of the forms that have no `error`."""
    if "error" in (parsed.get("object"), parsed.get("type")) or parsed.get("success") is False:
        return True
    return any(parsed.get(mark) for mark in _ERROR_MARKS)


def _has_other_part(content: Any) -> bool:
    parts = content if isinstance(content, list) else ()
    return any(part.get(name) for part in parts if isinstance(part, dict) for name in _OTHER_PARTS)


def is_filtered(reason: str) -> bool:
    """Whether a content filter ended the answer. `reason`: its `finish_reason`, in small letters."""
    return _FILTERED.fullmatch(reason) is not None


def is_spent(reason: str) -> bool:
    """Whether a limit on tokens cut the answer."""
    return reason in _SPENT


def text_of(content: Any) -> str:
    """The text of a message, empty where it has none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    # Some providers send the text in parts.
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(part for part in parts if isinstance(part, str))


def count_inputs(value: Any) -> int:
    """How many inputs an embeddings request holds: a string or one list of token ids counts as one."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return len(value)
    return 1


def count_token_ids(value: Any) -> int:
    """How many token ids an embeddings request holds; 0 for one of texts."""
    if not isinstance(value, list) or not value:
        return 0
    if isinstance(value[0], int):
        return len(value)
    return sum(map(len, value)) if all(isinstance(each, list) for each in value) else 0


def _index(row: Any, position: int) -> int:
    """Its place among the inputs. Servers that leave zeros out leave out the first one's."""
    index = row.get("index", position) if isinstance(row, dict) else None
    return index if type(index) is int else -1


def _dimensions(vector: Any) -> int:
    if isinstance(vector, str):
        return _packed_dimensions(vector)
    if not isinstance(vector, list) or not vector or not set(map(type, vector)) <= _NUMBERS:
        raise bad_response("an embedding is not a list of numbers")
    return len(vector)


def _packed_dimensions(text: str) -> int:
    """The same of an embedding that was asked for with `encoding_format="base64"`: packed 32-bit floats."""
    try:
        numbers = floats_of(text)
    except ValueError:
        raise bad_response("an embedding is not valid base64") from None
    if not numbers:
        raise bad_response("an embedding is not a list of numbers")
    if not math.isfinite(sum(numbers)):  # of 32 bits each, so that only an infinite one makes the sum infinite
        raise bad_response("an embedding holds NaN or an infinite number")
    return len(numbers)


def _count(byte: bytes, body: bytes) -> int:
    """As `bytes.count`, which looks at byte after byte; `replace` goes from one to the next (memchr)."""
    return len(body) - len(body.replace(byte, b""))


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


def loads(body: bytes) -> Any:
    """JSON behind a byte order mark, or with halves of surrogate pairs in it, as of an emoji that was cut: U+FFFD takes
    their place. Raises `Failure` for anything else."""
    text = body.removeprefix(_BYTE_ORDER_MARK)
    if b"\\u" in text:
        text = _ESCAPE.sub(_without_lone_surrogate, text)
    try:
        return orjson.loads(text)
    except ValueError:
        raise _not_json(text) from None


def _without_lone_surrogate(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["lone"] else escape[0]


def _not_json(body: bytes) -> Failure:
    start = body[:64].lstrip()
    if not start:
        return bad_response("the answer is empty")
    if start.startswith(b"<"):
        return bad_response("the answer is HTML, not JSON; is the provider's base_url right?")
    if start.startswith((b"data:", b"event:")):
        # It would be one the next time too.
        return Failure(
            "bad_response", "the answer is an event stream; give the model `stream_only = true` in the catalogue"
        )
    return bad_response("the answer is not valid JSON")


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "array", str: "string", bool: "boolean"}.get(type(value), "number")


def bad_response(message: str) -> Failure:
    """The provider sent what is no answer; the next may be one."""
    return Failure("bad_response", message, retryable=True)
