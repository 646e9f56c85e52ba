"""A prompt job as the worker sees it, and how it is read from a Celery message.

Two forms arrive. Our client sends one JSON text, so that no hook of kombu's decoder ever sees user data::

    args = ['{"body": {"model": ..., "messages": [...]}, "promptmill": {"tenant": ..., "deadline_s": ...}}']

Any stock Celery producer sends the provider's fields as keyword arguments::

    kwargs = {"model": ..., "messages": [...], "promptmill": {"tenant": ..., "deadline_s": ...}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tasks.wire.json_text import MAX_DEPTH, NotJson, check
from tasks.wire.kinds import KINDS, JobKind
from tasks.wire.options import MAX_NAME_CHARACTERS, MAX_SHOWN, ONLY_EMBEDDINGS, problem
from tasks.wire.request import is_repeatable
from tasks.wire.schema import schema_conflict, with_schema
from tasks.wire.vocabulary import Priority, TooLong, Trigger

from .failure import Failure

__all__ = ["MAX_DEPTH", "JobKind", "Options", "PromptJob", "parse"]


# Beyond this, orjson reads an integer as a float and loses digits of the user's data.
_FIRST_INEXACT_INT = 2.0**63


# What is made once for each job is not frozen: that takes three times as long (0.6 us for three fields).
@dataclass(slots=True)
class Options:
    """What a job asks of us, not of the provider: `tasks.wire.options`, with the deadline as an epoch time (s).

    Its `schema` stands in the body.
    """

    tenant: str | None = None
    priority: Priority = "normal"
    deadline_at: float | None = None
    metadata: Any = field(default=None, repr=False)
    max_attempts: int | None = None
    repeat_timeouts: bool | None = None
    repair: int = 0
    fallbacks: list[str] | None = None
    fallback_on: list[Trigger] | None = None
    tag: str | None = None
    cache_ttl_s: float | None = None
    sample: int = 0
    too_long: TooLong = "reject"
    stream: bool = False
    vectors: str | None = None
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

    @property
    def is_repeatable(self) -> bool:
        """Whether the same request is meant to bring the same answer: an embedding, or a `temperature` of 0."""
        return is_repeatable(self.kind, self.body)


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
    known = KINDS[kind]
    if not body.get(known.field):
        raise _refused(f"{known.noun} needs a `{known.field}` that is not empty")
    if known.refuses and (conflict := known.conflict(body)):
        raise _refused("`{}`: {}".format(*conflict))
    options, schema = _options(raw_options, now=now, read_stamp=read_stamp)
    if kind != "embed" and options.too_long != "reject":
        raise _refused(f"`promptmill.too_long`: {ONLY_EMBEDDINGS}")
    if options.stream and not known.streams:
        raise _refused(f"`promptmill.stream`: {known.noun} comes whole; leave it out")
    if schema is not None or options.repair:
        body = _with_schema(kind, body, schema, has_repair=bool(options.repair))
    return PromptJob(job_id, kind, model, body, options, group, bool(args))


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
    _check_json(body)
    _check_json(options, place="promptmill")
    return body, options


def _loads(text: str) -> Any:
    try:
        value = orjson.loads(text)
        containers, has_huge_number = _looked_over(value)
        if has_huge_number:
            value = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("the job's text is not JSON, or it nests too deep") from None
    if containers > MAX_DEPTH:  # fewer can't nest too deep
        _check_json(value, depth=0)
    return value


def _looked_over(value: Any) -> tuple[int, bool]:
    """How many objects and lists it holds, and whether a number in it may be one that orjson has rounded."""
    found, containers, has_huge_number = [value], 0, False
    for item in found:
        kind = type(item)  # orjson makes no subclasses
        if kind is dict:
            containers += 1
            found += item.values()
        elif kind is list:
            containers += 1
            found += item
        elif kind is float and abs(item) >= _FIRST_INEXACT_INT:
            has_huge_number = True
    return containers, has_huge_number


def _check_json(value: Any, *, place: str = "", depth: int = 1) -> None:
    try:
        check(value, place=place, depth=depth)
    except NotJson as error:
        raise _refused(str(error)) from None


def _with_schema(kind: JobKind, body: dict[str, Any], schema: Any, *, has_repair: bool) -> dict[str, Any]:
    """The body with the option `schema` in the provider's words."""
    if conflict := schema_conflict(kind, body, has_schema=schema is not None, has_repair=has_repair):
        raise _refused("`promptmill.{}`: {}".format(*conflict))
    return body if schema is None else with_schema(kind, body, schema)


def _options(raw: Any, *, now: float, read_stamp: Callable[[float], float]) -> tuple[Options, Any]:
    """Our options, and the schema, which belongs into the body."""
    if not raw:
        return Options(), None
    if not isinstance(raw, dict):
        raise _refused("`promptmill` is not an object of options")
    given: dict[str, Any] = {}
    for name, value in raw.items():
        if value is None:
            continue
        if refusal := problem(name, value, reader="worker"):
            raise _refused(f"`promptmill.{name[:MAX_SHOWN]}`: {refusal}")
        given[name] = value
    if (submitted_at := given.get("submitted_at")) is not None:
        given["submitted_at"] = read_stamp(submitted_at)
    if (deadline_s := given.pop("deadline_s", None)) is not None:
        given["deadline_at"] = given.get("submitted_at", now) + deadline_s
    schema = given.pop("schema", None)
    return Options(**given), schema


def _refused(message: str) -> Failure:
    return Failure("bad_request", message)
