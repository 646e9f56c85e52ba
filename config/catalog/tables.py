"""What a catalogue may say: a table for each provider and model, and the tables inside them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlencode

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.wire.kinds import Api
from tasks.wire.vocabulary import Tier, Trigger

from .field_types import (
    Amount,
    BaseUrl,
    Count,
    Currency,
    Factor,
    Flag,
    Headers,
    Multiple,
    Name,
    Query,
    Seconds,
    Variable,
    all_different,
)

TOKENS_PER_PRICE = 1_000_000

Profile = Literal["default", "fragile"]
Algorithm = Literal["bucket", "sliding", "fixed", "unknown"]
Kind = Literal["openai", "azure", "anthropic"]
StructuredOutputs = Literal["json_schema", "json_object", "none"]
"""What `response_format` a model takes: a schema, a promise of JSON alone, or none."""
Vectors = Literal["base64", "float"]
"""How embeddings are asked for: packed, or as JSON numbers."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Limits(Table):
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


class Rates(NamedTuple):
    """US dollars a token."""

    input: float
    cached_input: float
    output: float


class Price(Table):
    """Prices per million tokens. One that is None is unknown, which is never the same as 0.

    `flex` and `priority` are what a call of the provider's tier of that name costs, as a multiple of these prices.

    `source` says where the price was found. `date` is the source's day or, if it bears none, the day on which
    the price was written down.
    """

    input: Amount | None = None
    output: Amount | None = None
    cached_input: Amount | None = None
    cache_write: Amount | None = None
    flex: Factor | None = None
    priority: Factor | None = None
    currency: Currency = "USD"
    date: dt.date
    source: Annotated[str, Field(min_length=1)]

    @property
    def is_free(self) -> bool:
        """Whether a call costs nothing, whatever it counts."""
        return self.input == 0 and self.output == 0

    @cached_property
    def rates_usd(self) -> Rates | None:
        """US dollars a token, for comparing; None where the price of input or output is unknown."""
        if self.currency != "USD" or self.input is None or self.output is None:
            return None
        cached = self.input if self.cached_input is None else self.cached_input
        return Rates(*(float(price / TOKENS_PER_PRICE) for price in (self.input, cached, self.output)))

    def cost(
        self,
        *,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        tier: Tier = "standard",
    ) -> Decimal | None:
        """What a call cost in US dollars, not rounded.

        None if a price that is needed is unknown, or if the prices are in another currency. `cached_tokens`
        and `cache_write_tokens` are parts of `input_tokens` and are charged at `cached_input` and `cache_write`.
        `tier` is that by which the call was served; `other` has no known price.
        """
        factor = 1 if tier == "standard" else {"flex": self.flex, "priority": self.priority}.get(tier)
        if self.currency != "USD" or factor is None:
            return None
        cached = min(cached_tokens, input_tokens)
        written = min(cache_write_tokens, input_tokens - cached)
        charges = (
            (input_tokens - cached - written, self.input),
            (cached, self.cached_input),
            (written, self.cache_write),
            (output_tokens, self.output),
        )
        total = Decimal(0)
        for tokens, price in charges:
            if tokens <= 0:
                continue
            if price is None:
                return None
            total += tokens * price
        return total * factor / TOKENS_PER_PRICE


class Timeout(Table):
    """How long one call may take: in all, to connect, and between two pieces of the answer.

    A model that thinks is silent for minutes, and then sends the whole answer, so the wait for the first byte has no
    limit but `total_s`. A call of the flex tier may take `flex_total_s`, if that is longer.

    With `times_p95` a call may take no more than so many times what 95 % of the model's latest calls took, at least
    `least_s` and at most `total_s`.
    """

    total_s: Seconds = 600.0
    connect_s: Seconds = 10.0
    read_s: Seconds = 60.0
    flex_total_s: Seconds = 900.0
    times_p95: Multiple | None = None
    least_s: Seconds = 5.0

    @cached_property
    def flex(self) -> Timeout:
        """That of a call of the flex tier."""
        return self.within(max(self.total_s, self.flex_total_s))

    def within(self, total_s: float) -> Timeout:
        """The same with another `total_s`."""
        return self.model_copy(update={"total_s": total_s})


class Provider(Table):
    """Who answers: the address, the names of the keys' environment variables, and the wire format.

    `limits` and `timeout` hold for each of its models that states none, and so do `organisation_limits`, which all its
    keys have together for one model. `profile = "fragile"` opens at most 10 connections and uses each for one call.
    `any_model` passes on models that the catalogue does not name. `repeat_timeouts` permits another call after one that
    was sent whole and timed out, and so may be paid for.

    `kind` names the wire format. `auth = "bearer"` sends the key as a bearer token where the kind has a header of its
    own for it. `headers` and `query` are added to each request and each URL.

    `structured_outputs` says which `response_format` its models take. Where that is no JSON Schema, a job's schema
    stands in the system message. `stream_options = false` is for providers that refuse that field in a streamed
    request, and count its tokens all the same. `vectors` is how embeddings are asked for where the job does not say.
    `apis` names the endpoints that it has: a job for another one fails before it is sent.
    """

    name: Name
    base_url: BaseUrl
    api_keys: Annotated[tuple[Variable, ...], AfterValidator(all_different)] = ()
    key_prefix: str | None = None
    kind: Kind = "openai"
    auth: Literal["bearer"] | None = None
    headers: Headers = Field(default={})
    query: Query = Field(default={})
    profile: Profile = "default"
    any_model: bool = False
    limits: Limits = Limits()
    organisation_limits: OrganisationLimits | None = None
    timeout: Timeout = Timeout()
    repeat_timeouts: Flag = False
    structured_outputs: StructuredOutputs = "json_schema"
    stream_options: Flag = True
    vectors: Vectors = "base64"
    apis: Annotated[tuple[Api, ...], AfterValidator(all_different)] = ("chat", "embeddings")

    @model_validator(mode="after")
    def _kinds_have_their_apis(self) -> Provider:
        lacks = {"anthropic": {"responses", "completions", "moderations"}, "azure": {"moderations"}}
        if missing := lacks.get(self.kind, set()) & set(self.apis):
            raise ValueError(f"apis: a provider of kind {self.kind!r} has no {' and no '.join(sorted(missing))}")
        return self

    @model_validator(mode="after")
    def _azure_knows_its_version(self) -> Provider:
        if self.kind == "azure" and not self.is_azure_v1 and "api-version" not in self.query:
            raise ValueError(
                'base_url: Azure\'s v1 API ends in /openai/v1; a classic address needs query = { "api-version" = '
                '"2024-10-21" }'
            )
        return self

    @model_validator(mode="after")
    def _anthropic_has_no_json_object(self) -> Provider:
        if self.kind == "anthropic" and self.structured_outputs == "json_object":
            raise ValueError('structured_outputs: Anthropic\'s API has no json_object; say "json_schema" or "none"')
        return self

    @cached_property
    def query_string(self) -> str:
        """What each URL ends in: nothing, or `?` and the query."""
        return f"?{urlencode(self.query)}" if self.query else ""

    @cached_property
    def is_azure_v1(self) -> bool:
        """Whether the address is that of Azure's v1 API, which has OpenAI's own paths."""
        return self.base_url.endswith("/openai/v1")


class Model(Table):
    """A model as jobs name it. `upstream` is the provider's own name for it.

    `limits` are one key's; `organisation_limits` are of all keys together, and None stands for the provider's, as it
    does for `repeat_timeouts` and `structured_outputs`. `context_tokens` is what the model takes in all, and
    `max_output_tokens` what one answer can have; None where that is not known. A model that is `stream_only` answers in
    pieces alone: the worker asks for them, and collects them. One with `flex` is asked for by the provider's flex tier
    where a job has the time.

    One call for embeddings takes `max_inputs`, with `max_input_tokens` in all and `max_tokens_per_input` each. With the
    path of a `tokenizer` (a tokenizer.json) those of one input are counted, not estimated, where it may be too long.

    `fallbacks` are asked in turn where this model can't answer; `fallback_on` names what leads to them beyond what does
    so by itself. The fallbacks of a fallback play no part, so two models may name each other.
    """

    name: Name
    provider: Name
    upstream: Name = ""
    limits: Limits = Limits()
    organisation_limits: OrganisationLimits | None = None
    price: Price | None = None
    timeout: Timeout = Timeout()
    repeat_timeouts: Flag | None = None
    structured_outputs: StructuredOutputs | None = None
    max_output_tokens: Count | None = None
    context_tokens: Count | None = None
    stream_only: Flag = False
    flex: Flag = False
    max_inputs: Count = 2_048
    max_input_tokens: Count = 300_000
    max_tokens_per_input: Count | None = None
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    fallbacks: Annotated[tuple[Name, ...], AfterValidator(all_different)] = ()
    fallback_on: Annotated[tuple[Trigger, ...], AfterValidator(all_different)] = ()

    @model_validator(mode="before")
    @classmethod
    def _upstream_is_the_alias_unless_stated(cls, table: Any) -> Any:
        return {"upstream": table.get("name"), **table} if isinstance(table, dict) else table

    @model_validator(mode="after")
    def _a_tokenizer_has_a_use(self) -> Self:
        if self.tokenizer is not None and self.max_tokens_per_input is None:
            raise ValueError("a tokenizer counts the tokens of inputs; state `max_tokens_per_input` too")
        return self


NESTED_TABLES: dict[str, type[BaseModel]] = {
    "limits": Limits,
    "organisation_limits": Limits,
    "price": Price,
    "timeout": Timeout,
}
