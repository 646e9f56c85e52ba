"""From the arguments of `submit` to a checked job: what goes over the wire, or a clear refusal. No I/O here.

A refusal names where the offending value is (`messages[0].content`), never the value: prompts are private.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import uuid4

from ..errors import IdTaken, InvalidJob, UnknownModel
from .json_text import NotJson, encoded, kind_of
from .kinds import KINDS, JobKind
from .options import MAX_NAME_CHARACTERS, ONLY_EMBEDDINGS, OPTIONS, names_read_by, problem
from .schema import schema_conflict
from .vocabulary import Priority

__all__ = [
    "DEFAULT_MAX_JOB_BYTES",
    "NewJob",
    "check_group_id",
    "check_id",
    "check_model",
    "check_size",
    "id_taken",
    "is_repeatable",
    "new_job",
    "offered_as",
]

DEFAULT_MAX_JOB_BYTES: Final = 8 * 1024 * 1024

_ARGUMENTS: Final = tuple(names_read_by("client"))
_LEAVES_ITS_LANE: Final = frozenset({"deadline_s", "fallbacks", "fallback_on"})
"""Options of jobs that may end, or be answered by another model, before their turn in a lane."""
_READS_PACKED: Final = ',"vectors":"base64"'
"""What tells the workers that this client unpacks vectors."""
_TRAVELLING: Final = frozenset(names_read_by("worker"))


@dataclass(slots=True)
class NewJob:
    """A checked job. `options` is JSON too: what stands after `submitted_at` in our options, with its comma."""

    id: str
    kind: JobKind
    model: str
    priority: Priority
    tenant: str
    delay_s: float
    body: str
    options: str
    lane: str | None
    """Jobs of one lane wait for the same limit; None for one that may end, or be answered, without its turn."""
    size_bytes: int
    """About what the job takes in Redis."""
    fallbacks: tuple[str, ...] = ()
    streams: bool = False
    """Whether its answer is going to be read as it comes."""
    may_be_known: bool = False
    """The id is the caller's own: a job of this id may have been submitted before."""

    def __repr__(self) -> str:
        return f"NewJob(id={self.id!r}, kind={self.kind!r}, model={self.model!r}, body=(hidden))"

    def text(self, *, submitted_at: float) -> str:
        """The one JSON text that travels: kombu's decoder hooks (`__type__`) never see what is inside."""
        return f'{{"body":{self.body},"promptmill":{{"submitted_at":{submitted_at:.6f}{self.options}}}}}'


def new_job(
    *,
    model: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    **given: Any,
) -> NewJob:
    """Check the arguments of `submit`. Raises `InvalidJob`; `PromptQueue.submit` explains each argument."""
    options, options_json = _options({name: given[name] for name in _ARGUMENTS if given.get(name) is not None})
    body = {name: value for name, value in given.items() if name not in _ARGUMENTS}
    kind = _kind(options.get("kind"), body)
    subject = _subject(kind, body)
    _check_body(kind, model, subject, extra_body)
    whole = {**body, **extra_body} if extra_body else body
    if conflict := KINDS[kind].conflict(whole):
        raise InvalidJob("{}: {}".format(*conflict))
    if "schema" in options or options.get("repair"):
        _check_schema(kind, options, whole)
    if kind != "embed" and options.get("too_long", "reject") != "reject":
        raise InvalidJob(f"too_long: {ONLY_EMBEDDINGS}")
    if options.get("stream") and not KINDS[kind].streams:
        raise InvalidJob(f"stream: {KINDS[kind].noun} comes whole; leave it out")
    if kind == "embed":
        options_json += _READS_PACKED
    body_json = _json({"model": model, KINDS[kind].field: subject} | whole)
    priority: Priority = options.get("priority", "normal")
    return NewJob(
        id=options["id"] if "id" in options else str(uuid4()),
        kind=kind,
        model=cast(str, model),
        priority=priority,
        tenant=options.get("tenant", ""),
        delay_s=float(options.get("delay_s", 0.0)),
        body=body_json,
        options=options_json,
        lane=_lane(options, priority, cast(str, model), is_repeatable=is_repeatable(kind, whole)),
        size_bytes=len(body_json.encode()) + len(options_json.encode()),
        fallbacks=tuple(options.get("fallbacks", ())),
        streams=options.get("stream", False),
        may_be_known="id" in options,
    )


def is_repeatable(kind: JobKind, body: Mapping[str, Any]) -> bool:
    """Whether the same request is meant to bring the same answer: an embedding, or a `temperature` of 0.

    A response that goes on with a `conversation` depends on what the provider has stored by then.
    """
    if KINDS[kind].is_repeatable:
        return True
    if body.get("conversation"):
        return False
    temperature = body.get("temperature")
    return temperature == 0 and isinstance(temperature, int | float) and not isinstance(temperature, bool)


def check_size(job: NewJob, max_job_bytes: int) -> NewJob:
    """Redis and every worker hold a job in memory as a whole. Raises `InvalidJob`."""
    if job.size_bytes > max_job_bytes:
        raise InvalidJob(
            f"the job takes {job.size_bytes:,} bytes, more than the {max_job_bytes:,} permitted; "
            "shorten it or raise max_job_bytes"
        )
    return job


def offered_as(model: str) -> tuple[str, ...]:
    """The names under which workers may offer a model: its own, `*` for any, `PROVIDER/*` for a provider's."""
    provider, slash, _ = model.partition("/")
    return (model, "*", f"{provider}/*") if slash else (model, "*")


def check_model(job: NewJob, models: frozenset[str] | None) -> None:
    """`models` are those that workers offer; None where no worker has said. Raises `UnknownModel`."""
    if models is None:
        return
    _check_offered("model", job.model, models)
    for name in job.fallbacks:
        _check_offered("fallbacks", name, models)


def _check_offered(where: str, name: str, models: frozenset[str]) -> None:
    if not models.isdisjoint(offered_as(name)):
        return
    close = difflib.get_close_matches(name, models, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UnknownModel(
        f"{where}: no worker offers {name[:100]!r}.{hint} Known models: {', '.join(sorted(models))}. "
        "Name one of them, or add it to the workers' catalogue."
    )


def id_taken(job_id: str, *, index: int = 0) -> IdTaken:
    """The error for an id under which another tenant has submitted a job."""
    return IdTaken(
        f"id: {job_id!r} is the id of another tenant's job; use another one, that begins with the tenant's name, say",
        index=index,
    )


def check_id(job_id: object) -> str:
    """Raises `InvalidJob` for what can't be an id."""
    _check_option("id", job_id)
    return cast(str, job_id)


def check_group_id(group_id: str) -> str:
    """As an id, but what stands behind a colon would be taken for one of a group's further keys."""
    if ":" not in check_id(group_id):
        return group_id
    raise InvalidJob("group id: must not hold a colon, as in 'invoices-2026'")


# -- the provider's body


def _kind(asked: JobKind | None, body: Mapping[str, Any]) -> JobKind:
    """A chat or an embedding tells by its prompt's name which it is; the other kinds are named."""
    if asked is not None:
        return asked
    given = [name for name in ("messages", "input") if body.get(name) is not None]
    if len(given) == 1:
        return "chat" if given == ["messages"] else "embed"
    which = "both are given" if given else "neither is given"
    hint = "" if body.get("prompt") is None else "; a `prompt` is for queue.complete()"
    raise InvalidJob(f"messages, input: {which}; give `messages` for a chat or `input` for an embedding{hint}")


def _subject(kind: JobKind, body: dict[str, Any]) -> Any:
    """The prompt, taken out of `body`, which keeps no name of another kind's prompt that is None."""
    subject = body.pop(KINDS[kind].field, None)
    for name in ("messages", "input"):
        if body.get(name, kind) is None:
            del body[name]
        elif name in body:
            raise InvalidJob(f"{name}: is no field of {KINDS[kind].noun}, whose prompt is `{KINDS[kind].field}`")
    return subject


def _check_body(kind: JobKind, model: object, subject: Any, extra: object) -> None:
    if not isinstance(model, str) or not model.strip():
        raise InvalidJob("model: is missing; name a model of the workers' catalogue, as in model='gpt-4o-mini'")
    _check_name_length("model", model)
    if extra is not None and not isinstance(extra, Mapping):
        raise InvalidJob(f"extra_body: must be an object, not {kind_of(extra)}")
    if extra is not None and extra.get("stream"):
        raise InvalidJob("stream: it is an option of the job, no field of its body: submit(..., stream=True)")
    if kind == "chat":
        _check_messages(subject)
    elif not isinstance(subject, str | list | tuple) or not subject:
        raise InvalidJob(f"{KINDS[kind].field}: must be a text, or a list with at least one text")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidJob("messages: must be a list with at least one message, as in [{'role': 'user', ...}]")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidJob(f"messages[{index}]: must be an object with `role` and `content`, not {kind_of(message)}")


# -- our own options


def _options(given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The checked options, and as JSON those that travel: after `submitted_at`, with its comma."""
    travelling = {name: value for name, value in given.items() if name in _TRAVELLING and not _is_usual(name, value)}
    text = _json(travelling)
    for name, value in given.items():
        _check_option(name, value)
    _check_deadline(given.get("deadline_s"), given.get("delay_s", 0.0))
    return given, f",{text[1:-1]}" if travelling else ""


def _is_usual(name: str, value: object) -> bool:
    """Whether it needs no saying. The type counts: anything else than the option takes is refused by name."""
    default = OPTIONS[name].default
    return type(value) is type(default) and value == default


def _check_option(name: str, value: object) -> None:
    if refusal := problem(name, value, reader="client"):
        raise InvalidJob(f"{name}: {refusal}")


def _check_deadline(deadline_s: float | None, delay_s: float) -> None:
    if deadline_s is not None and deadline_s <= delay_s:
        raise InvalidJob(
            "deadline_s: counts from submission, so it must be more than delay_s or the job expires unsent"
        )


def _check_schema(kind: JobKind, options: dict[str, Any], body: dict[str, Any]) -> None:
    has_repair = bool(options.get("repair"))
    if conflict := schema_conflict(kind, body, has_schema="schema" in options, has_repair=has_repair):
        raise InvalidJob("{}: {}".format(*conflict))


def _lane(options: Mapping[str, Any], priority: Priority, model: str, *, is_repeatable: bool) -> str | None:
    if not _LEAVES_ITS_LANE.isdisjoint(options) or options.get("cache_ttl_s"):
        return None
    # The workers may have an answer to what is repeatable: such jobs don't wait behind those that have to be called.
    shares = is_repeatable and "cache_ttl_s" not in options
    return f"{priority} {model} repeatable" if shares else f"{priority} {model}"


def _check_name_length(where: str, name: str) -> None:
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidJob(f"{where}: has {len(name):,} characters, and a model's name at most {MAX_NAME_CHARACTERS}")


def _json(value: dict[str, Any]) -> str:
    try:
        return encoded(value)
    except NotJson as error:
        raise InvalidJob(str(error)) from None
