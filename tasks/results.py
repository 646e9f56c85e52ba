"""What a prompt job comes back with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from .errors import JobFailed
from .wire.vocabulary import Status, Tier

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import ErrorCode

__all__ = ["Attempt", "JobError", "PromptResult", "Status", "Usage"]


class ReadsJson(Protocol):
    """A class that validates JSON, such as Pydantic's models."""

    @classmethod
    def model_validate_json(cls, text: str, /) -> Self: ...


Parsed = TypeVar("Parsed", bound=ReadsJson)


# What is made for each job is not frozen: that costs ten times as much (a result's 19 fields: 2 % of a job's CPU).
@dataclass(slots=True)
class Usage:
    """Tokens as the provider counted them. `cached_tokens` (read from its cache) and `cache_write_tokens` are parts of
    `input_tokens`; reasoning is a part of `output_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to a provider that brought no answer.

    `at` is in seconds since the epoch, `duration_s` and `retry_after_s` (what the provider asked us to wait)
    in seconds. `suspected_payment`: the request had been sent whole, or a part of an answer had come, so the
    provider may charge for it. `usage` is what it counted, where it said so: that is paid for, and `cost_usd` is its
    price, None where that is unknown. `next` says what followed and why, where that was more than the same again.
    """

    code: ErrorCode
    message: str
    http_status: int | None = None
    answered_by: str | None = None
    request_id: str | None = None
    at: float = 0.0
    duration_s: float = 0.0
    retry_after_s: float | None = None
    suspected_payment: bool = False
    usage: Usage | None = None
    cost_usd: float | None = None
    next: str | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made of one; fields of a newer version are ignored."""
        values = _known(cls, data)
        if (usage := values.get("usage")) is not None:
            values["usage"] = Usage(**_known(Usage, usage))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job has no answer. `provider_body` is the provider's own text, cut to a few kilobytes; `last_answer` the
    text of the last answer, whole, of a job whose answers did not fit its schema.
    """

    code: ErrorCode
    message: str
    http_status: int | None = None
    retryable: bool = False
    provider_body: str | None = None
    attempts: tuple[Attempt, ...] = ()
    last_answer: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class PromptResult:
    """How one prompt job ended.

    Exactly one of `response` and `error` is set. `text` is the answer's text, None where the answer has none
    (a tool call, an embedding). `queued_s` runs from submission to the first start, `duration_s` from there to
    the end, both in seconds. `attempts` counts calls to providers. `cost_usd` is None where the price is
    unknown, never 0. `failed_attempts` are the calls that brought no answer, of a job that succeeded too.
    `suspected_double_payment`: one of them may have been paid for and was repeated, or the job's worker was lost.

    `cached`: the answer was stored for an equal prompt, and `saved_usd` is what that call cost, None where unknown.
    `route` says which rule of the route that `model` names chose, and why: {"name", "rule", "why"}. `repaired` names
    the step after which an answer fitted its schema; None: as it came. `tier` is how the provider served the call that
    brought the answer: "standard", "flex" for less, "priority" for more, or "other"; None where this job's call brought
    none. `too_long` says which inputs were longer than the model takes, and what was done: {"input": 3, "how":
    "truncated", "kept": 30000, "of": 45000}, in characters or token ids, or {"input": 3, "how": "split", "parts": 2}.
    """

    id: str
    status: Status
    text: str | None = None
    response: dict[str, Any] | None = None
    model: str | None = None
    answered_by: str | None = None
    tier: Tier | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    attempts: int = 0
    cached: bool = False
    saved_usd: float | None = None
    route: dict[str, Any] | None = None
    repaired: str | None = None
    too_long: list[dict[str, Any]] | None = None
    queued_s: float | None = None
    duration_s: float = 0.0
    suspected_double_payment: bool = False
    metadata: Any = None
    error: JobError | None = None
    failed_attempts: tuple[Attempt, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the job has an answer."""
        return self.status == "succeeded"

    def json(self) -> Any:
        """The answer's text, read as JSON. Raises `JobFailed` for a job without an answer, `ValueError` for an answer
        that is no JSON; with the option `schema` every answer is.
        """
        text = self._answer_text()
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError(f"the answer of job {self.id} is no JSON; the option `schema` sees to it") from None

    def parse(self, model: type[Parsed]) -> Parsed:
        """The answer's text as a `model`, any class with `model_validate_json`, such as Pydantic's.

        Raises what that raises, `JobFailed` for a job without an answer, and `ValueError` for an answer without a text.
        """
        return model.model_validate_json(self._answer_text())

    def _answer_text(self) -> str:
        if self.error is not None:
            raise JobFailed.of(self)
        if self.text is None:
            raise ValueError(
                f"the answer of job {self.id} has no text: it is a tool call, a refusal or an embedding; see `response`"
            )
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as stored in Redis. The inverse of `from_dict`.

        `response` and `metadata` are shared, not copied: `dataclasses.asdict` would walk through every float of an
        embedding, at a cost of 40 us for a short answer.
        """
        row = _fields(self)
        row["usage"] = _fields(self.usage)
        if self.error is not None:
            row["error"] = {**_fields(self.error), "attempts": _rows(self.error.attempts)}
        row["failed_attempts"] = _rows(self.failed_attempts) if self.failed_attempts else []
        return row

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote; fields of a newer version are ignored."""
        values = _known(cls, data)
        if (usage := values.get("usage")) is not None:
            values["usage"] = Usage(**_known(Usage, usage))
        if (error := values.get("error")) is not None:
            error = _known(JobError, error)
            error["attempts"] = _attempts(error.get("attempts"))
            values["error"] = JobError(**error)
        values["failed_attempts"] = _attempts(values.get("failed_attempts"))
        return cls(**values)


def _fields(value: Any) -> dict[str, Any]:
    names, get = _GETTERS.get(type(value)) or _getter(type(value))
    return dict(zip(names, get(value), strict=True))


def _getter(cls: type[Any]) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(each.name for each in fields(cls))
    return names, attrgetter(*names)


_GETTERS = {cls: _getter(cls) for cls in (Usage, Attempt, JobError, PromptResult)}


def _rows(attempts: tuple[Attempt, ...]) -> list[dict[str, Any]]:
    rows = [_fields(attempt) for attempt in attempts]
    for row in rows:
        if row["usage"] is not None:
            row["usage"] = _fields(row["usage"])
    return rows


def _known(cls: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {name: value for name, value in data.items() if name in names}


def _attempts(rows: list[dict[str, Any]] | None) -> tuple[Attempt, ...]:
    return tuple(map(Attempt.from_dict, rows or ()))
