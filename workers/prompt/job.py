"""A prompt job as the worker sees it, and how it is read from a Celery message.

Two forms arrive. Our client sends one JSON text, so that no hook of kombu's decoder ever sees user data::

    args = ['{"body": {"model": ..., "messages": [...]}, "promptmill": {"tenant": ..., "deadline_s": ...}}']

Any stock Celery producer sends the provider's fields as keyword arguments::

    kwargs = {"model": ..., "messages": [...], "promptmill": {"tenant": ..., "deadline_s": ...}}
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from tasks.wire.request import MAX_NAME_CHARACTERS

from .failure import Failure

__all__ = ["MAX_DEPTH", "JobKind", "Options", "Priority", "PromptJob", "parse"]

JobKind = Literal["chat", "embed"]
Priority = Literal["interactive", "normal", "bulk"]

MAX_DEPTH = 100
"""How deep a body may nest. Celery's encoders recurse, and their stack is smaller than a parser's."""

_PRIORITIES = ("interactive", "normal", "bulk")
_PROMPT_FIELD: dict[JobKind, str] = {"chat": "messages", "embed": "input"}
_MAX_NUMBER = 1e15
_MAX_PATH_CHARS = 200
# Beyond this, orjson reads an integer as a float and loses digits of the user's data.
_FIRST_INEXACT_INT = 2.0**63


# What is made once for each job is not frozen: that takes three times as long (0.6 us for three fields).
@dataclass(slots=True)
class Options:
    """What a job asks of us, not of the provider. Times are in seconds; `*_at` are epoch seconds."""

    tenant: str | None = None
    priority: Priority = "normal"
    deadline_at: float | None = None
    metadata: Any = field(default=None, repr=False)
    cache_ttl_s: float | None = None
    max_attempts: int | None = None
    fallbacks: tuple[str, ...] = ()
    repeat_timeouts: bool | None = None
    submitted_at: float | None = None


@dataclass(slots=True)
class PromptJob:
    """One prompt job. `body` is the provider's request body as the user wrote it; nobody may change it."""

    id: str
    kind: JobKind
    model: str
    body: dict[str, Any] = field(repr=False)
    options: Options = field(default_factory=Options)
    group: str | None = None
    is_clients: bool = field(default=False, compare=False)
    """Whether our client submitted it, which reads compressed results."""


def parse(
    kind: JobKind,
    job_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    group: str | None = None,
    now: float,
    read_stamp: Callable[[float], float] = float,
) -> PromptJob:
    """Read a job from a task's arguments. Raises `Failure` (`bad_request`) that says what to mend.

    A `deadline_s` counts from `submitted_at`; a stock producer sends none, and then it counts from `now`, the
    epoch time (s) of this reading: it begins anew if the job is delivered again.
    `read_stamp` leads from Redis's clock, which gave `submitted_at`, to that of `now`.
    """
    body, raw_options = _from_text(args, kwargs) if args else _from_fields(kwargs)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _refused("the job names no model; put the model's name into `model`")
    if len(model) > MAX_NAME_CHARACTERS:
        raise _refused(f"`model` has {len(model):,} characters, and a model's name at most {MAX_NAME_CHARACTERS}")
    prompt_field = _PROMPT_FIELD[kind]
    if not body.get(prompt_field):
        raise _refused(f"a {kind} job needs a `{prompt_field}` that is not empty")
    return PromptJob(
        job_id, kind, model, body, _options(raw_options, now=now, read_stamp=read_stamp), group, bool(args)
    )


def _from_text(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    if len(args) != 1 or kwargs or not isinstance(args[0], str):
        raise _refused("the task takes keyword arguments (model=..., messages=...), or our client's one text")
    envelope = _loads(args[0])
    if not isinstance(envelope, dict) or not isinstance(envelope.get("body"), dict):
        raise _refused('the job\'s text is not {"body": {...}, "promptmill": {...}}')
    return envelope["body"], envelope.get("promptmill")


def _from_fields(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    body = dict(kwargs)
    options = body.pop("promptmill", None)
    # Our client checks before it sends. A stock producer's values come through Python's json, which lets
    # NaN pass, and through kombu's hooks, which can make any type of them.
    _check_json(body, path="", depth=1)
    _check_json(options, path=".promptmill", depth=1)
    return body, options


def _loads(text: str) -> Any:
    try:
        value = orjson.loads(text)
        if _has_huge_number(value):
            value = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("the job's text is not JSON, or it nests too deep") from None
    # No text with fewer brackets can nest too deep, and counting them is far cheaper than walking.
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_json(value, path="", depth=0)
    return value


def _has_huge_number(value: Any) -> bool:
    found = [value]
    for item in found:
        kind = type(item)  # orjson makes no subclasses
        if kind is dict:
            found += item.values()
        elif kind is list:
            found += item
        elif kind is float and abs(item) >= _FIRST_INEXACT_INT:
            return True
    return False


def _check_json(value: Any, *, path: str, depth: int) -> None:
    """Refuse what can't be sent as it is. Names the value's place, never the value."""
    if depth > MAX_DEPTH:
        raise _refused(f"the body nests deeper than {MAX_DEPTH} levels")
    match value:
        case None | bool() | int():
            return
        case str():
            if not _is_unicode(value):
                raise _refused(f"the string at {path or '.'} holds a lone surrogate, which is not Unicode text")
        case float():
            if not math.isfinite(value):
                raise _refused(f"the number at {path or '.'} is NaN or infinite, which JSON can't carry")
        case dict():
            for key, item in value.items():
                _check_key(key, path=path)
                _check_json(item, path=f"{path}.{key}"[:_MAX_PATH_CHARS], depth=depth + 1)
        case list() | tuple():
            for index, item in enumerate(value):
                _check_json(item, path=f"{path}[{index}]", depth=depth + 1)
        case _:
            raise _refused(f"the value at {path or '.'} is a {type(value).__name__}, which is not JSON")


def _check_key(key: object, *, path: str) -> None:
    if not isinstance(key, str) or not _is_unicode(key):
        raise _refused(f"a key of the object at {path or '.'} is not a Unicode string")


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _options(raw: Any, *, now: float, read_stamp: Callable[[float], float]) -> Options:
    if not raw:
        return Options()
    if not isinstance(raw, dict):
        raise _refused("`promptmill` is not an object of options")
    given = {name: _reader(name)(name, value) for name, value in raw.items() if value is not None}
    if (submitted_at := given.get("submitted_at")) is not None:
        given["submitted_at"] = read_stamp(submitted_at)
    if (deadline_s := given.pop("deadline_s", None)) is not None:
        given["deadline_at"] = given.get("submitted_at", now) + deadline_s
    return Options(**given)


def _reader(name: str) -> Callable[[str, Any], Any]:
    if (reader := _READERS.get(name)) is not None:
        return reader
    # Silently dropping a misspelt `deadline_s` would cost money; refusing it costs a line of text.
    near = difflib.get_close_matches(name[:50], _READERS, n=1)  # comparing takes time by length
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(_READERS)}"
    raise _refused(f"`promptmill` has an unknown option {name[:50]!r}; {hint}")


def _string(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _refused(f"`promptmill.{name}` must be a string")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_NUMBER:
        raise _refused(f"`promptmill.{name}` must be a number that is not negative")
    return float(value)


def _metadata(name: str, value: Any) -> Any:
    try:
        # It comes back in the result, which is stored by this encoder.
        orjson.dumps(value)
    except TypeError:
        raise _refused(f"`promptmill.{name}` holds an integer of more than 64 bits; write it as a string") from None
    return value


def _priority(name: str, value: Any) -> Priority:
    if value not in _PRIORITIES:
        raise _refused(f"`promptmill.{name}` must be one of {', '.join(_PRIORITIES)}")
    priority: Priority = value
    return priority


def _max_attempts(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise _refused(f"`promptmill.{name}` must be a whole number of at least 1")


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _refused(f"`promptmill.{name}` must be true or false")


def _fallbacks(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(model, str) and model for model in value):
        return tuple(value)
    raise _refused(f"`promptmill.{name}` must be a list of models' names")


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "tenant": _string,
    "priority": _priority,
    "deadline_s": _number,
    "metadata": _metadata,
    "cache_ttl_s": _number,
    "max_attempts": _max_attempts,
    "fallbacks": _fallbacks,
    "repeat_timeouts": _flag,
    "submitted_at": _number,
}


def _refused(message: str) -> Failure:
    return Failure("bad_request", message)
