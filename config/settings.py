"""Settings from the environment (`PROMPTMILL_*`, nested with `__`) and from `.env` in the working directory.

A variable of the environment stands over the same variable in `.env`; an empty variable counts as unset.
docs/reference/configuration.md lists them all.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Literal

import pydantic_settings
from dotenv import dotenv_values
from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from .problems import text_of
from .setting_types import (
    Count,
    CountOrZero,
    HttpUrl,
    KeyPrefix,
    LogLevel,
    RedisUrl,
    Seconds,
    SecondsOrZero,
    UserPath,
    Weight,
)

__all__ = [
    "Breaker",
    "Cache",
    "Http",
    "Limit",
    "Log",
    "Packing",
    "Producers",
    "Retry",
    "Settings",
    "SettingsError",
    "environment",
    "get_settings",
    "settings_variables",
]

PREFIX = "PROMPTMILL_"
NESTED = "__"
ENV_FILE = ".env"


class SettingsError(ValueError):
    """The environment can't be used as it is. The text names each variable, its problem and an example.

    It never repeats a value, because Redis and proxy URLs carry passwords.
    """


# The groups are dataclasses because a pydantic model can't have a field named `json`.
# validate_default: base_s alone can contradict the default of cap_s.
_GROUP = ConfigDict(extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True, validate_default=True)


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Retry:
    """How a job is tried again. One counter of attempts serves every cause of failure.

    A job may ask for more than `max_attempts`, up to `attempts_cap`.
    """

    max_attempts: Count = 4
    attempts_cap: Count = 20
    base_s: Seconds = 1.0
    cap_s: Seconds = 60.0

    @field_validator("cap_s")
    @classmethod
    def _cap_is_not_below_base(cls, cap_s: float, info: ValidationInfo) -> float:
        if cap_s < info.data.get("base_s", 0):
            raise ValueError("must not be below the base_s of the same group")
        return cap_s


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Breaker:
    """When a provider's model is taken for out, by all workers: when `failures` jobs have failed within `window_s`
    (0 failures: never). One job tries after `open_s`; the others wait, one without a deadline for `patience_s`.
    """

    failures: CountOrZero = 5
    window_s: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 30.0
    open_s: Annotated[float, Field(ge=0.1, allow_inf_nan=False)] = 5.0
    patience_s: Seconds = 3_600.0


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Cache:
    """The answers that serve equal prompts again.

    `ttl_s` is for embeddings and chats with a `temperature` of 0 that have no `cache_ttl_s` of their own; None: only
    jobs that ask for it are cached. Answers take up to `memory_mb` in each worker process, and `redis_mb` in Redis.
    """

    ttl_s: Annotated[Seconds | None, Field(examples=["86400"])] = None
    memory_mb: CountOrZero = 64
    redis_mb: CountOrZero = 256


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Stream:
    """Answers that are read as they come.

    What comes within `coalesce_ms` travels to the readers together. Of one answer up to `max_bytes` are kept for
    readers while it comes; the rest they get at the end. A stream is kept for `keep_s` after its end.
    """

    coalesce_ms: Annotated[int, Field(ge=1, le=1_000)] = 25
    max_bytes: Count = 4 * 1024 * 1024
    keep_s: Count = 600


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Http:
    """The connection pool of a worker process. Time-outs are per model, in the catalogue.

    `limit` and `limit_per_host` count connections: a `limit` of 0 means as many as `concurrency`, a
    `limit_per_host` of 0 means no limit of its own. `max_unstored_bytes` bounds the large answers (above 64 KB) that
    have been read and are not stored yet, all together.
    """

    limit: CountOrZero = 0
    limit_per_host: CountOrZero = 0
    ttl_dns_cache_s: CountOrZero = 30
    keepalive_s: SecondsOrZero = 30.0
    force_close: bool = False
    max_response_bytes: Count = 16 * 1024 * 1024
    max_unstored_bytes: Count = 64 * 1024 * 1024
    max_header_bytes: Count = 16 * 1024
    # A dataclass looks for `repr` in the default, not in the annotation.
    proxy: HttpUrl | None = Field(default=None, repr=False, examples=["http://proxy.internal:3128"])
    ca_file: Annotated[UserPath | None, Field(examples=["/etc/ssl/company-ca.pem"])] = None
    trust_env: bool = False


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Flex:
    """Jobs whose deadline is `min_deadline_s` or more after their submission are sent by the flex tier of models that
    have one. A `bulk` job without a deadline waits for room there for `patience_s`."""

    min_deadline_s: Seconds = 1_800.0
    patience_s: Seconds = 86_400.0


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Packing:
    """How long a call for embeddings waits for inputs of further jobs, while others are under way."""

    wait_s: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.02


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Log:
    """What the workers log, whether each line is a JSON object, and whether each job gets lines of its own."""

    level: LogLevel = "INFO"
    json: bool = False
    jobs: bool = False


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Limit:
    """The limit that all workers share.

    While Redis is away a worker goes on at four fifths of its last share for `degraded_for_s`, then stops
    (`degraded`); stops at once (`closed`); or sends without a limit (`open`). A job whose turn is more than
    `park_after_s` away gives its place in the worker to another. Tenants whose jobs wait take turns by their
    `tenant_weights`; one that is not named weighs 1.
    """

    when_redis_is_away: Literal["degraded", "closed", "open"] = "degraded"
    degraded_for_s: Seconds = 60.0
    park_after_s: Seconds = 5.0
    tenant_weights: Annotated[dict[str, Weight] | None, Field(examples=['{"web": 3, "batch": 1}'])] = None


@dataclass(frozen=True, kw_only=True, config=_GROUP)
class Producers:
    """How Celery producers name their lists of messages, where they have priority settings of their own.

    Workers read these lists besides the usual ones (kombu's `priority_steps` 0, 3, 6, 9 and `sep`).
    """

    priority_steps: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...] | None, Field(examples=["[0, 1, 2]"])] = (
        None
    )
    separator: Annotated[str | None, Field(examples=[":"])] = None


class Settings(BaseSettings):
    """Everything a deployment can set, apart from models and keys, which the catalogue names.

    Call `get_settings()`: it turns a bad value into one readable `SettingsError`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        # `.env` holds the providers' keys too.
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        str_strip_whitespace=True,
    )

    redis_url: Annotated[RedisUrl, Field(repr=False)] = "redis://localhost:6379/0"
    broker_url: Annotated[RedisUrl | None, Field(repr=False, examples=["redis://localhost:6379/0"])] = None
    result_url: Annotated[RedisUrl | None, Field(repr=False, examples=["redis://localhost:6379/1"])] = None
    key_prefix: Annotated[KeyPrefix, Field(examples=["staging:"])] = ""
    catalog: Annotated[UserPath | None, Field(examples=["/etc/promptmill/catalog.toml"])] = None
    allow_eviction: bool = False
    allow_open_flower: bool = False
    flower_url: Annotated[HttpUrl, Field(repr=False)] = "http://127.0.0.1:5555"
    concurrency: Count = 100
    loop_patience_s: SecondsOrZero = 60.0
    result_expires_s: Count = 86_400
    result_compress_from_bytes: CountOrZero = 32_768
    producers: Producers = Producers()
    retry: Retry = Retry()
    breaker: Breaker = Breaker()
    cache: Cache = Cache()
    limit: Limit = Limit()
    stream: Stream = Stream()
    http: Http = Http()
    packing: Packing = Packing()
    flex: Flex = Flex()
    log: Log = Log()

    @property
    def broker(self) -> str:
        """The URL of the queue's Redis, with its password."""
        return self.broker_url or self.redis_url

    @property
    def results(self) -> str:
        """The URL of the results' Redis, with its password."""
        return self.result_url or self.redis_url


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once. Raises `SettingsError`; `get_settings.cache_clear()` reads them anew."""
    try:
        settings = Settings()
        problems = list(_misspelt(environment()))
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors(include_url=False, include_input=False)]
    except pydantic_settings.SettingsError as error:
        problems = [_unreadable_group(error)]
    except (OSError, UnicodeDecodeError) as error:
        problems = [f"{ENV_FILE}: can't be read as UTF-8 text ({type(error).__name__})"]
    if problems:
        raise SettingsError("\n".join(("the settings can't be used:", *(f"  {problem}" for problem in problems))))
    return settings


def environment() -> dict[str, str]:
    """The environment, and below it what `.env` in the working directory adds."""
    # Without interpolation: a key may hold a dollar sign.
    added = dotenv_values(ENV_FILE, encoding="utf-8", interpolate=False)
    return {**{name: value for name, value in added.items() if value is not None}, **os.environ}


@lru_cache(maxsize=1)
def settings_variables() -> dict[str, FieldInfo]:
    """Every variable that a setting has, with the setting's field."""
    variables: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        for path, part in _parts(name, field):
            variables[_variable(path)] = part
    return variables


def _parts(name: str, field: FieldInfo) -> list[tuple[tuple[str, ...], FieldInfo]]:
    """A setting's path and field: one of its own, or one for each part of a group."""
    parts: dict[str, FieldInfo] | None = getattr(field.annotation, "__pydantic_fields__", None)
    if parts is None:
        return [((name,), field)]
    return [((name, part), part_field) for part, part_field in parts.items()]


def _problem(details: ErrorDetails) -> str:
    place = [str(part) for part in details["loc"]]
    if details["type"] == "unexpected_keyword_argument":
        return _no_such_setting(_variable(place))
    # A setting that is a JSON object has places of its own inside.
    outwards = (_variable(place[:depth]) for depth in range(len(place), 0, -1))
    variable = next((each for each in outwards if each in settings_variables()), None)
    if variable is None:
        return _not_a_group(_variable(place))
    text = text_of(details).replace("a valid dictionary", "a JSON object")
    return f"{variable}: {text}. For example: {variable}={_example(settings_variables()[variable])}"


def _unreadable_group(error: pydantic_settings.SettingsError) -> str:
    # The text says `error parsing value for field "http" from source ...`; it holds no value.
    found = re.search(r'field "(\w+)"', str(error))
    return _not_a_group(_variable([found[1]])) if found else "a variable can't be read"


def _not_a_group(variable: str) -> str:
    parts = [name for name in settings_variables() if name.startswith(variable + NESTED)]
    return f"{variable}: must be a JSON object. Or set its parts: {', '.join(parts)}"


def _variable(parts: Iterable[str]) -> str:
    return PREFIX + NESTED.join(parts).upper()


def _example(field: FieldInfo) -> str:
    value = field.examples[0] if field.examples else field.default
    return str(value).lower() if isinstance(value, bool) else str(value)


def _misspelt(names: Iterable[str]) -> Iterator[str]:
    """Variables that are nearly a setting's.

    Others pass: an orchestrator puts PROMPTMILL_PORT and the like into our environment on its own.
    """
    known = {name.removeprefix(PREFIX) for name in settings_variables()}
    groups = {name.partition(NESTED)[0] for name in known}
    for name in sorted(name.upper().removeprefix(PREFIX) for name in names if name.upper().startswith(PREFIX)):
        if name not in known | groups and difflib.get_close_matches(name, known, cutoff=0.8):
            yield _no_such_setting(PREFIX + name)


def _no_such_setting(variable: str) -> str:
    known = {name.removeprefix(PREFIX): name for name in settings_variables()}
    near = difflib.get_close_matches(variable.removeprefix(PREFIX), known, n=1)
    advice = f"Did you mean {known[near[0]]}?" if near else "docs/reference/configuration.md lists the settings."
    return f"{variable}: there is no such setting. {advice}"
