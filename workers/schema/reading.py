"""The choices of an answer: read, repaired and validated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from ..providers import Answer
from ..providers.answers import is_filtered, is_spent, text_of
from .repair import NotRepairable, readings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .validator import SchemaValidator

__all__ = ["Reading", "read"]


class Reading(NamedTuple):
    """An answer held against its schema. `answer` has the repaired texts; as they came, they stand under each choice's
    `provider_fields`.

    `misfit`: what is wrong, None where nothing is. `last_text`: the text of the choice that does not fit.
    """

    answer: Answer
    misfit: str | None = None
    is_repaired: bool = False
    is_cut: bool = False
    is_filtered: bool = False
    last_text: str | None = None


def read(answer: Answer, validator: SchemaValidator) -> Reading:
    """Hold every choice against the schema, or a response. A tool call, a refusal and a sound are no such answers, and
    left alone."""
    if isinstance(answer.response.get("output"), list):
        return _read_response(answer, validator)
    choices: list[Any] = list(answer.response.get("choices") or ())
    is_repaired = False
    for index, choice in enumerate(choices):
        if (text := _text_to_read(choice)) is None:
            continue
        reason = str(choice.get("finish_reason") or "").lower()
        valid, misfit = _read_text(text, validator, is_whole=not is_spent(reason))
        if misfit is not None:
            return Reading(answer, misfit, is_cut=is_spent(reason), is_filtered=is_filtered(reason), last_text=text)
        if valid != text:
            choices[index] = _with_text(choice, valid, came_as=text)
            is_repaired = True
    return Reading(_with_choices(answer, choices) if is_repaired else answer, is_repaired=is_repaired)


def _read_response(answer: Answer, validator: SchemaValidator) -> Reading:
    response = answer.response
    text = answer.text
    if not text or any(_is_other(item) for item in response["output"]):
        return Reading(answer)
    details = response.get("incomplete_details")
    reason = str(details.get("reason") or "").lower() if isinstance(details, dict) else ""
    valid, misfit = _read_text(text, validator, is_whole=not is_spent(reason))
    if misfit is not None:
        return Reading(answer, misfit, is_cut=is_spent(reason), is_filtered=is_filtered(reason), last_text=text)
    if valid == text:
        return Reading(answer)
    own = {**(response.get("provider_fields") or {}), "content": text}
    response = {**response, "output": _with_output(response["output"], valid), "provider_fields": own}
    return Reading(Answer(valid, response, answer.usage), is_repaired=True)


def _is_other(item: Any) -> bool:
    """Whether it is a tool's call, or a message with a refusal."""
    if not isinstance(item, dict) or item.get("type") != "message":
        return isinstance(item, dict) and str(item.get("type")).endswith("_call")
    return any(isinstance(part, dict) and part.get("type") == "refusal" for part in item.get("content") or ())


def _with_output(output: list[Any], text: str) -> list[Any]:
    """The response's items with their text in the first part that has one."""
    texts = iter([text])
    return [{**item, "content": _with_parts(item["content"], texts)} if _is_message(item) else item for item in output]


def _with_parts(parts: list[Any], texts: Iterator[str]) -> list[Any]:
    return [
        {**part, "text": next(texts, "")} if isinstance(part, dict) and part.get("type") == "output_text" else part
        for part in parts
    ]


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "message" and isinstance(item.get("content"), list)


def _text_to_read(choice: Any) -> str | None:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    text = text_of(message.get("content"))
    is_other = any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio"))
    return None if is_other else text


def _read_text(text: str, validator: SchemaValidator, *, is_whole: bool) -> tuple[str, str | None]:
    """The JSON in a text, and what is wrong with it."""
    try:
        value = orjson.loads(text)
    except ValueError:
        return _read_broken(text, validator, is_whole=is_whole)
    return text, validator.misfit(value)


def _read_broken(text: str, validator: SchemaValidator, *, is_whole: bool) -> tuple[str, str | None]:
    """The same for a text that is no JSON. Of several readings the only one that fits is meant."""
    try:
        found = [(reading, validator.misfit(orjson.loads(reading))) for reading in readings(text, is_whole=is_whole)]
    except NotRepairable as why:
        return text, f"the answer is not JSON: {why}"
    except ValueError:  # orjson's
        return text, "the answer is not JSON: a number is too large"
    if len(found) == 1:
        return found[0]
    fitting = [each for each in found if each[1] is None]
    return fitting[0] if len(fitting) == 1 else (text, "the answer is not JSON: a bracket is missing")


def _with_text(choice: dict[str, Any], text: str, *, came_as: str) -> dict[str, Any]:
    own = {**(choice.get("provider_fields") or {}), "content": came_as}
    return {**choice, "message": {**choice["message"], "content": text}, "provider_fields": own}


def _with_choices(answer: Answer, choices: list[Any]) -> Answer:
    texts = (text_of(choice["message"].get("content")) for choice in choices if _text_to_read(choice) is not None)
    return Answer(next(filter(None, texts), answer.text), {**answer.response, "choices": choices}, answer.usage)
