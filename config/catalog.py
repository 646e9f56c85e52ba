"""The model catalogue: which provider answers for a model, within which limits, at what price.

`load_catalog` reads the presets (`presets.toml`) and lays a user's TOML file over them: a table of that file
replaces the preset's whole table of the same name. What can go wrong, as one tree::

    CatalogError               (also a ValueError)
    ├── InvalidCatalog         the file can't be used; the text names file, table and key
    └── UnknownModel           the catalogue does not name this model        (also a LookupError)
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

__all__ = [
    "Catalog",
    "CatalogError",
    "InvalidCatalog",
    "Limits",
    "Model",
    "Price",
    "Profile",
    "Provider",
    "Timeout",
    "UnknownModel",
    "load_catalog",
]

PRESETS = Path(__file__).with_name("presets.toml")
ANY_MODEL = "*"
"""Stands in `Catalog.aliases()` for a provider that takes any model."""

SECTIONS = ("providers", "models")
TOKENS_PER_PRICE = 1_000_000

# An error's text stays readable with a long name or a long catalogue.
MOST_CHARACTERS = 100
MOST_NAMES = 20

Profile = Literal["default", "fragile"]
Algorithm = Literal["bucket", "sliding", "fixed", "unknown"]


class CatalogError(ValueError):
    """Base of what the catalogue raises."""


class InvalidCatalog(CatalogError):
    """The catalogue can't be used. One line for each problem, with file, table and key; never a value."""


class UnknownModel(CatalogError, LookupError):
    """The catalogue does not name this model, and no provider takes any model."""


def _not_a_bool(value: object) -> object:
    # Python counts True as 1, and so would pydantic.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic takes no TypeError
    return value


def _name(text: str) -> str:
    if not _is_name(text):
        raise ValueError("must be a name of 1 to 200 characters, without white space and other than '*'")
    return text


def _is_name(text: str) -> bool:
    return text != ANY_MODEL and re.fullmatch(r"[^\s\x00-\x1f\x7f]{1,200}", text) is not None


def _variable(text: str) -> str:
    # Capitals only: most keys have small letters, and a key must never pass for a name (and be logged as one).
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", text):
        raise ValueError(
            "must be the name of an environment variable in capitals, such as OPENAI_API_KEY, and never the key itself"
        )
    return text


def _base_url(text: str) -> str:
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError("must be a URL without white space in it")
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError("must be a URL with a valid host and port") from None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError("must be a URL that begins with https:// or http:// and names a host")
    if "@" in url.netloc:
        raise ValueError("must not carry a user or password; name the key's environment variable in api_keys")
    if url.query or url.fragment:
        raise ValueError("must end with its path, without '?' and '#'")
    return text.rstrip("/")


def _all_different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must not name the same twice")
    return values


def _currency(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", text):
        raise ValueError("must be a currency's three capitals, such as USD")
    return text


Name = Annotated[str, AfterValidator(_name)]
Currency = Annotated[str, AfterValidator(_currency)]
Variable = Annotated[str, AfterValidator(_variable)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Count = Annotated[int, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Seconds = Annotated[float, BeforeValidator(_not_a_bool), Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[Decimal, BeforeValidator(_not_a_bool), Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Limits(_Table):
    """What a provider permits one key for one model. None means "not known", never "no limit".

    `rpm`, `tpm` and `rpd` are requests a minute, tokens a minute and requests a day; `input_tpm` and
    `output_tpm` are for providers that count the two apart. `algorithm` is how the provider counts.
    """

    rpm: Count | None = None
    tpm: Count | None = None
    rpd: Count | None = None
    max_in_flight: Count | None = None
    input_tpm: Count | None = None
    output_tpm: Count | None = None
    algorithm: Algorithm = "unknown"


def _above_the_keys(limits: Limits) -> Limits:
    if limits.rpd is not None or limits.max_in_flight is not None:
        raise ValueError("must state limits a minute alone; rpd and max_in_flight belong in limits, for each key")
    return limits


OrganisationLimits = Annotated[Limits, AfterValidator(_above_the_keys)]


class Price(_Table):
    """Prices per million tokens. One that is None is unknown, which is never the same as 0.

    `source` says where the price was found. `date` is the source's day or, if it bears none, the day on which
    the price was written down.
    """

    input: Amount | None = None
    output: Amount | None = None
    cached_input: Amount | None = None
    currency: Currency = "USD"
    date: dt.date
    source: Annotated[str, Field(min_length=1)]

    def cost(self, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> Decimal | None:
        """What a call cost in US dollars, not rounded.

        None if a price that is needed is unknown, or if the prices are in another currency. `cached_tokens`
        are part of `input_tokens` and are charged at `cached_input`.
        """
        if self.currency != "USD":
            return None
        cached = min(cached_tokens, input_tokens)
        charges = ((input_tokens - cached, self.input), (cached, self.cached_input), (output_tokens, self.output))
        total = Decimal(0)
        for tokens, price in charges:
            if tokens <= 0:
                continue
            if price is None:
                return None
            total += tokens * price
        return total / TOKENS_PER_PRICE


class Timeout(_Table):
    """How long one call may take: in all, to connect, and between two pieces of the answer.

    A model that thinks is silent for minutes, and then sends the whole answer, so the wait for the first byte has no
    limit but `total_s`.
    """

    total_s: Seconds = 600.0
    connect_s: Seconds = 10.0
    read_s: Seconds = 60.0


class Provider(_Table):
    """Who answers: the address, the names of the keys' environment variables, and the wire format.

    `limits` and `timeout` hold for each of its models that states none, and so do `organisation_limits`, which all its
    keys have together for one model. `profile = "fragile"` opens at most 10 connections and uses each for one call.
    `any_model` passes on models that the catalogue does not name. `repeat_timeouts` permits another call after one that
    was sent whole and timed out, and so may be paid for.
    """

    name: Name
    base_url: BaseUrl
    api_keys: Annotated[tuple[Variable, ...], AfterValidator(_all_different)] = ()
    key_prefix: str | None = None
    kind: Literal["openai"] = "openai"
    profile: Profile = "default"
    any_model: bool = False
    limits: Limits = Limits()
    organisation_limits: OrganisationLimits | None = None
    timeout: Timeout = Timeout()
    repeat_timeouts: Flag = False


class Model(_Table):
    """A model as jobs name it. `upstream` is the provider's own name for it.

    `limits` are one key's; `organisation_limits` are of all keys together, and None stands for the provider's, as it
    does for `repeat_timeouts`.
    """

    name: Name
    provider: Name
    upstream: Name = ""
    limits: Limits = Limits()
    organisation_limits: OrganisationLimits | None = None
    price: Price | None = None
    timeout: Timeout = Timeout()
    repeat_timeouts: Flag | None = None

    @model_validator(mode="before")
    @classmethod
    def _upstream_is_the_alias_unless_told(cls, table: Any) -> Any:
        return {"upstream": table.get("name"), **table} if isinstance(table, dict) else table


NOT_BUILT = {"fallbacks": "models have no fallbacks yet, so no other model would be asked. Leave the key out."}
"""Keys that tables will have one day, and until then are refused, with the reason."""

NESTED_TABLES: dict[str, type[BaseModel]] = {
    "limits": Limits,
    "organisation_limits": Limits,
    "price": Price,
    "timeout": Timeout,
}

# pydantic speaks of Python's types; a catalogue's author writes TOML.
_TEXTS = {
    "model_type": "must be a table",
    "tuple_type": 'must be a list, such as ["..."]',
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number without quotes",
    "decimal_type": "must be a number",
    "decimal_parsing": "must be a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_too_short": "must not be empty",
    "missing": "is missing. A table stands in place of the preset of the same name, it does not add to it.",
}


class Catalog(_Table):
    """Providers and models by name. A name that one table uses is the name of another."""

    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}

    @field_validator("providers", "models", mode="before")
    @classmethod
    def _tables_know_their_names(cls, tables: Any, info: ValidationInfo) -> Any:
        if not isinstance(tables, dict):
            return tables
        return {name: _named(table, name, section=str(info.field_name)) for name, table in tables.items()}

    @field_validator("models")
    @classmethod
    def _models_inherit(cls, models: dict[str, Model], info: ValidationInfo) -> dict[str, Model]:
        providers = info.data.get("providers", {})
        return {alias: _with_providers(model, providers.get(model.provider)) for alias, model in models.items()}

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Catalog:
        problems = [*_rivals_for_any_model(self.providers), *_dangling_providers(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def model(self, alias: str) -> Model:
        """The model that jobs call by this name.

        A name that the catalogue lacks goes unchanged to the provider with `any_model`. Without such a
        provider, raises `UnknownModel`, which lists the nearest names.
        """
        return self.models.get(alias) or self._model_of_any(alias)

    def provider(self, model: Model) -> Provider:
        """The provider that answers for this model."""
        return self.providers[model.provider]

    def repeats_timeouts(self, model: Model) -> bool:
        """Whether a call of this model that was sent and timed out is made again, if the job does not say."""
        return self.provider(model).repeat_timeouts if model.repeat_timeouts is None else model.repeat_timeouts

    def aliases(self) -> list[str]:
        """The names that jobs may use, sorted; `*` is one of them if a provider takes any model."""
        return sorted([*self.models, *([ANY_MODEL] if self._provider_of_any() else [])])

    def provider_of(self, alias: str) -> Provider:
        """The provider of one of `aliases`."""
        of_any = self._provider_of_any() if alias == ANY_MODEL else None
        return of_any or self.providers[self.models[alias].provider]

    def _provider_of_any(self) -> Provider | None:
        return next((provider for provider in self.providers.values() if provider.any_model), None)

    def _model_of_any(self, alias: str) -> Model:
        provider = self._provider_of_any()
        if provider is None or not _is_name(alias):
            raise UnknownModel(_unknown_model(alias, self.models))
        return Model(name=alias, provider=provider.name, limits=provider.limits, timeout=provider.timeout)


def load_catalog(path: Path | None = None) -> Catalog:
    """The presets, with the tables of the user's file in place of presets of the same name.

    Raises `InvalidCatalog`. A provider whose key is not set is no error: `config.api_keys` looks at keys.
    """
    document = _read(PRESETS)
    if path is not None:
        document = _overlaid(document, _read(path), path)
    return _validated(document, path or PRESETS)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"), parse_float=Decimal)
    except OSError as error:
        reason = f"can't be read ({error.strerror}); PROMPTMILL_CATALOG has to name a TOML file, or nothing"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start})"
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}"
    except RecursionError:
        reason = "is nested too deeply"
    raise InvalidCatalog(f"{path}: {reason}")


def _overlaid(base: dict[str, Any], top: dict[str, Any], path: Path) -> dict[str, Any]:
    merged = {**base, **top}
    for section in SECTIONS:
        tables = top.get(section, {})
        if not isinstance(tables, dict):
            raise InvalidCatalog(f"{path}: {section}: must be tables such as {_heading((section, 'name'))}")
        merged[section] = {**base[section], **tables}
    return merged


def _validated(document: dict[str, Any], path: Path) -> Catalog:
    try:
        return Catalog.model_validate(document)
    except ValidationError as error:
        # The presets are sound by a test: what is wrong came with the user's file.
        problems = [line for details in error.errors(include_url=False) for line in _problem(details)]
        raise InvalidCatalog("\n".join(f"{path}: {problem}" for problem in problems)) from None


def _named(table: Any, name: str, *, section: str) -> Any:
    if not isinstance(table, dict):
        return table
    if table.get("name", name) != name:
        raise ValueError(f"{_heading((section, name))} name: there is no such key; the heading holds the name")
    return {**table, "name": name}


def _with_providers(model: Model, provider: Provider | None) -> Model:
    """The model with its provider's limits and time-out where it states none."""
    if provider is None:
        return model
    inherited = {"limits": provider.limits, "timeout": provider.timeout}
    missing = {name: value for name, value in inherited.items() if name not in model.model_fields_set}
    return model.model_copy(update=missing) if missing else model


def _rivals_for_any_model(providers: Mapping[str, Provider]) -> Iterator[str]:
    names = [name for name, provider in providers.items() if provider.any_model]
    if len(names) > 1:
        yield f"{_heading(('providers', names[1]))} any_model: {' and '.join(names)} have it; only one can"


def _dangling_providers(catalog: Catalog) -> Iterator[str]:
    for alias, model in catalog.models.items():
        if model.provider not in catalog.providers:
            advice = _advice(model.provider, catalog.providers)
            yield f"{_heading(('models', alias))} provider: no provider is named {model.provider!r}. {advice}"


def _unknown_model(alias: str, models: Mapping[str, Model]) -> str:
    return (
        f"no model is named {_cut(alias)!r}. {_advice(alias, models)} "
        "A [models] table in the file that PROMPTMILL_CATALOG names adds one."
    )


def _advice(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(_cut(name), known, n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"There are {', '.join(map(repr, known[:MOST_NAMES])) or 'none'}{more}."


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."


def _problem(details: ErrorDetails) -> Iterator[str]:
    """One line for each thing that is wrong. Values stay out of it: somebody may have pasted a key."""
    own_text = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error" and len(details["loc"]) < 2:
        # A check across tables says itself where.
        yield from own_text.splitlines()
    elif details["type"] == "extra_forbidden":
        yield _place(details["loc"]) + _unknown_key(details)
    else:
        text = _TEXTS.get(details["type"]) or own_text.replace("Input should", "must").replace("String should", "must")
        yield _place(details["loc"]) + text


def _unknown_key(details: ErrorDetails) -> str:
    *parents, key = map(str, details["loc"])
    if key in NOT_BUILT:
        return NOT_BUILT[key]
    keys = _keys_of(parents)
    if near := difflib.get_close_matches(key, keys, n=1, cutoff=0.5):
        return f"there is no such key. Did you mean {near[0]}?"
    if isinstance(details["input"], dict) and len(parents) == 2:
        # [models.gpt-4.1] without quotes is a table "1" in a table "gpt-4" to TOML.
        whole = _heading((parents[0], f"{parents[1]}.{key}"))
        return f"there is no such table. A name with a dot needs quotes: {whole}"
    return f"there is no such key. There are {', '.join(keys)}."


def _keys_of(parents: Sequence[str]) -> list[str]:
    match parents:
        case []:
            return list(SECTIONS)
        case ["providers", _]:
            table: type[BaseModel] = Provider
        case ["models", _]:
            table = Model
        case _:
            table = NESTED_TABLES[parents[-1]]
    return [key for key in table.model_fields if key != "name"]


def _place(loc: tuple[int | str, ...]) -> str:
    """`[models."gpt-4.1"] limits.rpm: ` for ("models", "gpt-4.1", "limits", "rpm")."""
    heading, keys = _heading(loc[:2]) if len(loc) > 1 else "", loc[2:] if len(loc) > 1 else loc
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    return f"{' '.join(filter(None, (heading, dotted)))}: "


def _heading(names: Iterable[int | str]) -> str:
    """A TOML table's heading. Names go through JSON's quotes, which TOML shares."""
    parts = (name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name) for name in map(str, names))
    return f"[{'.'.join(parts)}]"
