"""How a job's schema travels to a provider, and the bodies of further calls. Bodies are never changed in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from tasks.wire.schema import described_schema

from ..providers.size import measure

if TYPE_CHECKING:
    from config.catalog import StructuredOutputs
    from tasks.wire.kinds import JobKind

__all__ = ["asked_again", "has_schema", "in_mode", "limit_of", "schema_of", "with_limit"]

Body = dict[str, Any]

MOST_GROWTH: Final = 0.3
"""What a further question adds, as a share of the prompt and its schema."""

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_READ = ("messages", "response_format", "input", "instructions", "text")
"""What a model reads of a prompt that has a schema."""

_INSTRUCTION = "Answer with JSON alone, without any other text, that fits this JSON Schema:\n"
_QUESTION = "\n\nThe last answer was not valid: {error}. Answer again with valid JSON."
_SHORT_QUESTION = "\n\nThe last answer was not valid."


def has_schema(body: Body) -> bool:
    """Whether the answer to a chat, or a response, has to fit a JSON Schema."""
    return schema_of(body) is not None


def schema_of(body: Body) -> Any:
    """The JSON Schema that the body's `response_format`, or `text.format`, names; None where there is none."""
    kind = _kind_of(body)
    described = None if kind is None else described_schema(kind, body)
    return described.get("schema") if isinstance(described, dict) else None


def in_mode(body: Body, mode: StructuredOutputs) -> Body:
    """The body for a model that can do so much. Where it takes no schema, the schema stands in the system message."""
    if mode == "json_schema":
        return body
    told = _INSTRUCTION + orjson.dumps(schema_of(body)).decode()
    if _kind_of(body) == "respond":
        return _response_in_mode(body, mode, told)
    changed = {**body, "messages": _with_system(body["messages"], told)}
    if mode == "json_object":
        return {**changed, "response_format": {"type": "json_object"}}
    return {name: value for name, value in changed.items() if name != "response_format"}


def asked_again(body: Body, error: str) -> Body:
    """The same prompt with one more sentence: what was wrong with the last answer. The answer itself is not sent back:
    it would make the prompt grow, and a model repeats what it reads.

    The sentence is shortened so that the prompt grows by at most `MOST_GROWTH`.
    """
    room = int(MOST_GROWTH * measure([body[name] for name in _READ if name in body])[0])
    question = _QUESTION.format(error=error)
    if len(question) > room:
        question = _QUESTION.format(error=error[: max(0, room - len(question) + len(error))].rstrip())
    if len(question) > room:
        question = _SHORT_QUESTION
    if _kind_of(body) == "respond":
        return {**body, "input": _with_question(body["input"], question)}
    return {**body, "messages": _with_user(body["messages"], question)}


def limit_of(body: Body) -> int | None:
    """How many tokens an answer may have, by the body."""
    found = (body.get(name) for name in _LIMITS)
    return next((value for value in found if type(value) is int and value > 0), None)


def with_limit(body: Body, tokens: int) -> Body:
    """The body with another limit, under the name that it uses."""
    usual = "max_output_tokens" if _kind_of(body) == "respond" else "max_tokens"
    name = next((name for name in _LIMITS if body.get(name) is not None), usual)
    return {**body, name: tokens}


def _kind_of(body: Body) -> JobKind | None:
    """Of those whose answers fit schemas."""
    return "chat" if "messages" in body else "respond" if "input" in body else None


def _response_in_mode(body: Body, mode: StructuredOutputs, told: str) -> Body:
    text = {name: value for name, value in body["text"].items() if name != "format"}
    if mode == "json_object":
        text["format"] = {"type": "json_object"}
    instructions = f"{before}\n\n{told}" if (before := body.get("instructions")) else told
    return {**body, "instructions": instructions, "text": text}


def _with_question(asked: Any, question: str) -> Any:
    if isinstance(asked, str):
        return asked + question
    last = asked[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return [*asked, {"role": "user", "content": question.strip()}]
    content = last.get("content")
    if isinstance(content, list):
        return [*asked[:-1], {**last, "content": [*content, {"type": "input_text", "text": question}]}]
    return [*asked[:-1], {**last, "content": f"{content or ''}{question}"}]


def _with_system(messages: list[Any], told: str) -> list[Any]:
    first, *others = messages
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return [_extended(first, f"\n\n{told}"), *others]
    return [{"role": "system", "content": told}, first, *others]


def _with_user(messages: list[Any], question: str) -> list[Any]:
    """In the last message if it is the user's: templates of many models refuse two turns of one role."""
    *others, last = messages
    if isinstance(last, dict) and last.get("role") == "user":
        return [*others, _extended(last, question)]
    return [*messages, {"role": "user", "content": question.strip()}]


def _extended(message: Body, text: str) -> Body:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": text}]}
    return {**message, "content": f"{content or ''}{text}"}
