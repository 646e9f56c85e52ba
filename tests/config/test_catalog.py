from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from config.catalog import (
    Catalog,
    CatalogError,
    InvalidCatalog,
    Limits,
    Price,
    Provider,
    Timeout,
    UnknownModel,
    load_catalog,
)

Load = Callable[[str], Catalog]

# On a fresh machine hypothesis spends a second on tables of its own, which its time limits would put down to us.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PRESETS = load_catalog()
LOCAL = '[providers.local]\nbase_url = "http://127.0.0.1:8000/v1"\n'


def price(**amounts: object) -> Price:
    return Price.model_validate({"date": dt.date(2026, 1, 1), "source": "a test", **amounts})


# -- reading and overlaying ----------------------------------------------------------------------------------------


def test_a_table_of_the_user_stands_in_place_of_the_whole_preset(load_text: Load) -> None:
    catalog = load_text(LOCAL + '[models."gpt-4o-mini"]\nprovider = "local"\n')
    mine = catalog.model("gpt-4o-mini")
    assert (mine.provider, mine.price, mine.limits) == ("local", None, Limits())
    assert catalog.model("gpt-4.1") == PRESETS.model("gpt-4.1")


def test_a_provider_is_replaced_under_the_models_of_the_presets(load_text: Load) -> None:
    catalog = load_text('[providers.openai]\nbase_url = "https://proxy.test/v1/"\napi_keys = ["A", "B"]\n')
    provider = catalog.provider(catalog.model("gpt-4o"))
    assert (provider.name, provider.base_url, provider.api_keys) == ("openai", "https://proxy.test/v1", ("A", "B"))


def test_a_model_says_everything_that_is_known_about_it(load_text: Load) -> None:
    catalog = load_text(
        LOCAL
        + """
        [models."a.b"]
        provider = "local"
        upstream = "org/a.b:free"
        limits = { rpm = 3, tpm = 4_000, rpd = 5, max_in_flight = 6, input_tpm = 7, output_tpm = 8 }
        price = { input = 0.1, output = 0, cached_input = "0.01", date = "2026-01-02", source = "here" }
        timeout = { total_s = 9, connect_s = 1.5 }
        """
    )
    model = catalog.model("a.b")
    assert model.upstream == "org/a.b:free"
    assert model.limits == Limits(rpm=3, tpm=4000, rpd=5, max_in_flight=6, input_tpm=7, output_tpm=8)
    assert model.price is not None
    assert (model.price.input, model.price.output, model.price.cached_input) == (
        Decimal("0.1"),
        Decimal(0),
        Decimal("0.01"),
    )
    assert model.price.date == dt.date(2026, 1, 2)
    assert model.timeout == Timeout(total_s=9, connect_s=1.5, read_s=60)


def test_the_upstream_name_is_the_alias_unless_told(load_text: Load) -> None:
    assert load_text(LOCAL + '[models.mine]\nprovider = "local"\n').model("mine").upstream == "mine"


@pytest.mark.covers("catalog", "providers.limits")
def test_limits_of_the_provider_hold_for_models_that_state_none(load_text: Load) -> None:
    catalog = load_text(
        LOCAL
        + "limits = { rpm = 9 }\nany_model = true\n"
        + '[models.a]\nprovider = "local"\n[models.b]\nprovider = "local"\nlimits = { tpm = 5 }\n'
    )
    assert catalog.model("a").limits == catalog.model("anything").limits == Limits(rpm=9)
    assert catalog.model("b").limits == Limits(tpm=5)


def test_an_organisation_s_limits_are_the_model_s_or_provider_s(load_text: Load) -> None:
    catalog = load_text(
        LOCAL
        + "organisation_limits = { rpm = 9, input_tpm = 5 }\n"
        + '[models.a]\nprovider = "local"\n'
        + '[models.b]\nprovider = "local"\norganisation_limits = { tpm = 7, algorithm = "bucket" }\n'
    )
    assert catalog.providers["local"].organisation_limits == Limits(rpm=9, input_tpm=5)
    assert catalog.model("a").organisation_limits is None
    assert catalog.model("b").organisation_limits == Limits(tpm=7, algorithm="bucket")


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_text(LOCAL, encoding="utf-8-sig")
    assert "local" in load_catalog(path).providers


def test_nothing_in_a_catalogue_changes() -> None:
    with pytest.raises(ValidationError):
        PRESETS.model("gpt-4o").upstream = "other"


# -- names of models -----------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownModel, match=r"no model is named 'gpt4o-mini'. Did you mean 'gpt-4o-mini'") as caught:
        PRESETS.model("gpt4o-mini")
    assert isinstance(caught.value, CatalogError)
    assert isinstance(caught.value, LookupError)


def test_an_unknown_model_without_a_near_name_lists_all() -> None:
    with pytest.raises(UnknownModel, match=r"There are 'claude-sonnet-4.5', 'deepseek-v3.2'"):
        PRESETS.model("zzz")


def test_a_very_long_name_is_cut_in_the_text() -> None:
    with pytest.raises(UnknownModel) as caught:
        PRESETS.model("x" * 10_000)
    assert len(str(caught.value)) < 1_000


@pytest.mark.covers("catalog", "providers.any_model")
def test_any_model_takes_names_that_the_catalogue_lacks(load_text: Load) -> None:
    catalog = load_text(LOCAL + "any_model = true\n")
    model = catalog.model("org/new-model")
    assert (model.name, model.upstream, model.provider) == ("org/new-model", "org/new-model", "local")
    assert catalog.provider(model).base_url == "http://127.0.0.1:8000/v1"
    assert catalog.model("gpt-4o").provider == "openai", "a name that is listed keeps its provider"
    assert "*" in catalog.aliases()


@pytest.mark.covers("catalog", "providers.timeout")
def test_a_providers_time_out_holds_for_models_that_state_none(load_text: Load) -> None:
    catalog = load_text(
        LOCAL
        + "any_model = true\ntimeout = { total_s = 900 }\nrepeat_timeouts = true\n"
        + '[models.own]\nprovider = "local"\ntimeout = { read_s = 5 }\nrepeat_timeouts = false\n'
        + '[models.none]\nprovider = "local"\n'
    )
    assert catalog.model("own").timeout == Timeout(total_s=600, connect_s=10, read_s=5)
    assert catalog.model("none").timeout == catalog.model("of-any").timeout == Timeout(total_s=900)
    permitted = [catalog.repeats_timeouts(catalog.model(alias)) for alias in ("own", "none", "of-any")]
    assert permitted == [False, True, True]


def test_models_have_time_to_think() -> None:
    assert load_catalog().model("gpt-4o-mini").timeout == Timeout(total_s=600, connect_s=10, read_s=60)


@pytest.mark.parametrize("alias", ["", "*", "two words", "line\nbreak", "x" * 201])
def test_any_model_takes_no_name_that_is_none(load_text: Load, alias: str) -> None:
    with pytest.raises(UnknownModel):
        load_text(LOCAL + "any_model = true\n").model(alias)


def test_aliases_are_sorted_and_each_leads_to_its_model() -> None:
    aliases = PRESETS.aliases()
    assert aliases == sorted(aliases)
    named = [alias for alias in aliases if not alias.endswith("/*")]
    assert [PRESETS.model(alias).name for alias in named] == named
    stand_ins = [PRESETS.providers_of(f"{name}/*") for name in PRESETS.providers]
    assert stand_ins == [[provider] for provider in PRESETS.providers.values()]


def test_a_providers_own_name_is_found_after_aliases() -> None:
    own = PRESETS.model("openai/gpt-9")
    assert (own.name, own.provider, own.upstream, own.price) == ("openai/gpt-9", "openai", "gpt-9", None)
    assert PRESETS.model("holysheep/org/x").limits == PRESETS.providers["holysheep"].limits
    assert PRESETS.model("openai/gpt-4o") is PRESETS.model("gpt-4o"), "with its limits and price"
    assert PRESETS.model("holysheep/gpt-4.1").name == "holysheep/gpt-4.1", "an alias goes first"


def test_any_model_goes_before_a_providers_own_name(load_text: Load) -> None:
    catalog = load_text(LOCAL + "any_model = true\n")
    assert catalog.model("openai/gpt-9").provider == "local"


@pytest.mark.parametrize("alias", ["nobody/gpt-9", "openai/", "openai/*", "openai/two words", "/x"])
def test_a_providers_own_name_needs_the_provider_and_a_name(alias: str) -> None:
    with pytest.raises(UnknownModel):
        PRESETS.model(alias)


# -- headers, query, auth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        'headers = { Authorization = "x" }',
        'headers = { "api-key" = "x" }',
        'headers = { "X-API-Key" = "x" }',
        'headers = { "x-goog-api-key" = "x" }',
        'headers = { "Helicone-Auth" = "x" }',
        'headers = { Cookie = "x" }',
        'headers = { "X-Title" = "Bearer canary" }',
        'headers = { "X-Title" = "sk-canary" }',
        'query = { key = "canary" }',
        'query = { "subscription-key" = "canary" }',
    ],
)
def test_a_secret_is_no_part_of_a_catalogue(load_text: Load, line: str) -> None:
    with pytest.raises(InvalidCatalog, match=r"must not hold a secret.*api_keys") as caught:
        load_text(LOCAL + line + "\n")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('headers = { Host = "x" }', "headers: must not hold Host"),
        ('headers = { "User-Agent" = "x" }', "headers: must not hold User-Agent"),
        ('headers = { "two words" = "x" }', "headers: must have the names"),
        ('headers = { "X-Title" = "a\\r\\nb" }', "headers: must hold printable ASCII"),
        ('headers = { "X-Title" = "a", "x-title" = "b" }', "headers: must not name the same header twice"),
        ('headers = { "X-Title" = 7 }', "headers.X-Title: must be text in quotes"),
        ('headers = "X-Title: a"', "headers: must be a table"),
        ('query = { "a\\u0000" = "b" }', "query: must hold printable"),
        ('auth = "basic"', "auth: must be 'bearer'"),
        ('kind = "bedrock"', "kind: must be 'openai', 'azure' or 'anthropic'"),
        ('kind = "azure"', "a classic address needs query"),
        ('structured_outputs = "xml"', "structured_outputs: must be 'json_schema', 'json_object' or 'none'"),
        ('kind = "anthropic"\nstructured_outputs = "json_object"', "Anthropic's API has no json_object"),
    ],
)
def test_what_no_request_can_carry_is_refused(load_text: Load, line: str, says: str) -> None:
    with pytest.raises(InvalidCatalog) as caught:
        load_text(LOCAL + line + "\n")
    assert says in str(caught.value)


def test_a_query_is_encoded_once() -> None:
    provider = Provider(name="p", base_url="https://host", query={"api-version": "2024-10-21", "filter": "a b&c"})
    assert provider.query_string == "?api-version=2024-10-21&filter=a+b%26c"


# -- refusals ------------------------------------------------------------------------------------------------------


def model_table(lines: str) -> str:
    return f'[models.m]\nprovider = "openai"\n{lines}\n'


def route_table(lines: str) -> str:
    return f"[routes.r]\n{lines}\n"


def rule_table(lines: str, model: str = "gpt-4o") -> str:
    return f'[routes.r]\ndefault = "gpt-4o"\n[[routes.r.rules]]\nmodel = "{model}"\n{lines}\n'


def provider_table(lines: str) -> str:
    return f'[providers.p]\nbase_url = "https://p.test/v1"\n{lines}\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[models.m\n", "is not TOML: "),
        ("\n\nx = \n", "at line 3"),
        ("models = 3", "models: must be tables such as [models.name]"),
        ("[models]\nm = 3", "[models.m]: must be a table"),
        ("[model.m]", "model: there is no such key. Did you mean models?"),
        ("[models.m]\n", "[models.m] provider: is missing."),
        ('[models.m]\nprovider = "opnai"', "[models.m] provider: no provider is named 'opnai'. Did you mean 'openai'?"),
        ('[models.gpt-4.1]\nprovider = "openai"', 'A name with a dot needs quotes: [models."gpt-4.1"]'),
        ('[models."two words"]\nprovider = "openai"', '[models."two words"] name: must be a name of'),
        ('[models."*"]\nprovider = "openai"', '[models."*"] name: must be a name of'),
        (model_table('name = "other"'), "[models.m] name: there is no such key"),
        (model_table("limts = {}"), "[models.m] limts: there is no such key. Did you mean limits?"),
        (model_table("zzz = 1"), "[models.m] zzz: there is no such key. There are provider, upstream, limits"),
        (model_table("limits = 3"), "[models.m] limits: must be a table"),
        (model_table("limits = { rmp = 3 }"), "[models.m] limits.rmp: there is no such key. Did you mean rpm?"),
        (model_table("limits = { rpm = 0 }"), "[models.m] limits.rpm: must be greater than 0"),
        (model_table('limits = { rpm = "3" }'), "[models.m] limits.rpm: must be a whole number without quotes"),
        (model_table("limits = { rpm = true }"), "[models.m] limits.rpm: must be a whole number"),
        (model_table("limits = { rpm = 2.5 }"), "[models.m] limits.rpm: must be a whole number"),
        (model_table('limits = { algorithm = "x" }'), "limits.algorithm: must be 'bucket', 'sliding', 'fixed' or"),
        (model_table("timeout = { total_s = true }"), "[models.m] timeout.total_s: must be a number"),
        (model_table("timeout = { total_s = inf }"), "[models.m] timeout.total_s: must be a finite number"),
        (model_table("timeout = { times_p95 = 0.9 }"), "[models.m] timeout.times_p95: must be greater than or equal"),
        (
            model_table("timeout = { times_p95 = 3 }"),
            "[models.m] timeout.times_p95: calls that it ends may be paid for",
        ),
        (provider_table("timeout = { times_p95 = 3 }"), "[providers.p] timeout.times_p95: calls that it ends may be"),
        (model_table('price = { flex = 0, date = 2026-01-01, source = "x" }'), "price.flex: must be greater than 0"),
        (
            provider_table('kind = "anthropic"') + '[models.m]\nprovider = "p"\nflex = true',
            "[models.m] flex: Anthropic's API has no flex tier; leave it out",
        ),
        (model_table("timeout = { read_s = 0 }"), "[models.m] timeout.read_s: must be greater than 0"),
        (model_table('price = { date = 2026-01-01, source = "" }'), "[models.m] price.source: must not be empty"),
        (model_table('price = { source = "x" }'), "[models.m] price.date: is missing"),
        (model_table('price = { input = -1, date = 2026-01-01, source = "x" }'), "price.input: must be greater than"),
        (model_table('price = { currency = "eur", date = 2026-01-01, source = "x" }'), "such as USD"),
        (model_table('fallbacks = ["gpt-4oo"]'), "[models.m] fallbacks: no model is named 'gpt-4oo'. Did you mean"),
        (model_table('fallbacks = ["m"]'), "[models.m] fallbacks: names the model itself"),
        (model_table('fallbacks = ["gpt-4o", "gpt-4o"]'), "[models.m] fallbacks: must not name the same twice"),
        (model_table('fallback_on = ["timeout"]'), "[models.m] fallback_on[0]: must be 'rate_limited', 'content_"),
        (model_table("context_tokens = 0"), "[models.m] context_tokens: must be greater than 0"),
        (provider_table('fallbacks = ["q"]'), "[providers.p] fallbacks: there is no such key"),
        (route_table(""), "[routes.r]: needs `default`, one model, or `targets`"),
        (route_table('default = "gpt-4o"\ntargets = ["gpt-4o"]'), "[routes.r]: needs `default`, one model, or"),
        (route_table('default = "gpt-4o"\nchoose = "fastest"'), "[routes.r]: `choose` chooses among `targets`"),
        (route_table('targets = ["gpt-4o"]\nchoose = "best"'), "[routes.r] choose: must be 'first', 'cheapest' or"),
        (route_table('targets = ["gpt-4oo"]'), "[routes.r] targets: no model is named 'gpt-4oo'. Did you mean"),
        (route_table('targets = ["gpt-4o", "gpt-4o"]'), "[routes.r] targets: must not name the same twice"),
        (route_table('default = "r"'), "[routes.r] default: 'r' is a route, which could lead back here"),
        (route_table('defualt = "gpt-4o"'), "[routes.r] defualt: there is no such key. Did you mean default?"),
        (rule_table('when = { tagg = "x" }'), "[routes.r] rules[0].when.tagg: there is no such key. Did you mean tag?"),
        (rule_table("when = {}"), "[routes.r] rules[0].when: must ask for something"),
        (rule_table('whn = { tag = "x" }'), "[routes.r] rules[0].whn: there is no such key. Did you mean when?"),
        (rule_table('when = { priority = "high" }'), "[routes.r] rules[0].when.priority: must be 'interactive'"),
        (rule_table('when = { tag = "x" }', "gpt-4oo"), "[routes.r] rules[0].model: no model is named 'gpt-4oo'"),
        (
            model_table("") + route_table('default = "gpt-4o"').replace("routes.r", "routes.m"),
            "[routes.m]: a model has this name too, so jobs could not say which they mean",
        ),
        (
            route_table('default = "gpt-4o"').replace("routes.r", 'routes."openai/x"'),
            "[routes.\"openai/x\"]: reads as a model of the provider 'openai'",
        ),
        ("[providers.p]", "[providers.p] base_url: is missing."),
        ('[providers.p]\nbase_url = "api.test/v1"', "begins with https:// or http:// and names a host"),
        ('[providers.p]\nbase_url = "ftp://api.test"', "begins with https:// or http:// and names a host"),
        ('[providers.p]\nbase_url = "https://api.test:x/v1"', "must be a URL with a valid host and port"),
        ('[providers.p]\nbase_url = "https://api.test/v 1"', "must be a URL without white space"),
        ('[providers.p]\nbase_url = "https://api.test/v1?a=b"', "must end with its path"),
        (provider_table('kind = "other"'), "[providers.p] kind: must be 'openai'"),
        (provider_table('profile = "other"'), "[providers.p] profile: must be 'default' or 'fragile'"),
        (provider_table('api_keys = "KEY"'), "[providers.p] api_keys: must be a list"),
        (provider_table('api_keys = ["KEY", "KEY"]'), "[providers.p] api_keys: must not name the same twice"),
        (
            provider_table("organisation_limits = { rpm = 5, rpd = 9 }"),
            "[providers.p] organisation_limits: must state limits a minute alone; rpd and max_in_flight belong in",
        ),
        (
            provider_table("organisation_limits = { rps = 5 }"),
            "[providers.p] organisation_limits.rps: there is no such key. Did you mean rpm?",
        ),
        (provider_table('any_model = "sometimes"'), "[providers.p] any_model: must be true or false"),
    ],
)
def test_a_mistake_is_told_with_file_table_and_key(load_text: Load, text: str, problem: str) -> None:
    with pytest.raises(InvalidCatalog) as caught:
        load_text(text)
    assert problem in str(caught.value)
    assert all("/mine.toml: " in line for line in str(caught.value).splitlines())


def test_every_mistake_is_told_at_once(load_text: Load) -> None:
    with pytest.raises(InvalidCatalog) as caught:
        load_text(provider_table('kind = "x"') + model_table("limits = { rpm = 0, tpm = 0 }"))
    assert len(str(caught.value).splitlines()) == 3


def test_only_one_provider_takes_any_model(load_text: Load) -> None:
    with pytest.raises(InvalidCatalog, match=r"\[providers\.p\] any_model: local and p have it; only one can"):
        load_text(LOCAL + "any_model = true\n" + provider_table("any_model = true"))


@pytest.mark.parametrize(
    "text",
    [
        provider_table('api_keys = ["sk-canary"]'),
        provider_table('api_keys = ["gsk_canary0000"]'),
        provider_table('api_key = "sk-canary"'),
        provider_table('key = { value = "sk-canary" }'),
        provider_table('kind = "sk-canary"'),
        '[providers.p]\nbase_url = "https://user:sk-canary@p.test/v1"',
        '[providers.p]\nbase_url = "https://p.test/v1?key=sk-canary"',
        '[providers.p]\nbase_url = "https://sk-canary:x@[p.test"',
        '[providers.p]\nbase_url = "https://p.test/v1"\napi_keys = ["sk-canary]\n',
    ],
)
def test_a_key_in_the_catalogue_is_refused_and_never_repeated(load_text: Load, text: str) -> None:
    with pytest.raises(InvalidCatalog) as caught:
        load_text(text)
    assert "canary" not in str(caught.value)


def test_a_file_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidCatalog, match=r"none\.toml: can't be read \(No such file or directory\)"):
        load_catalog(tmp_path / "none.toml")


def test_a_file_in_another_encoding_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes("# für\n".encode("latin-1"))
    with pytest.raises(InvalidCatalog, match=r"latin\.toml: is not UTF-8 text \(byte 3\)"):
        load_catalog(path)


def test_endless_nesting_is_told(load_text: Load) -> None:
    with pytest.raises(InvalidCatalog, match=r"nested too deeply|is not TOML"):
        load_text("x = " + "[" * 100_000)


_TEXTS = st.sampled_from(["", "*", "a", "a b", "openai", "https://h.test/v1", "2026-01-01", "\ud800"])
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_KEYS = st.sampled_from(["provider", "base_url", "limits", "price", "timeout", "rpm", "a.b", "", "name"])
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4))


@untimed
@given(st.dictionaries(st.sampled_from(["providers", "models", "x"]), st.dictionaries(_KEYS, _VALUES, max_size=3)))
def test_any_tables_raise_nothing_but_a_validation_error(document: dict[str, object]) -> None:
    try:
        catalog = Catalog.model_validate(document)
    except ValidationError:
        return
    assert all(catalog.provider(model) for model in catalog.models.values())


# -- cost ----------------------------------------------------------------------------------------------------------

_AMOUNTS = st.decimals(min_value=0, max_value=10_000, places=6)
_TOKENS = st.integers(min_value=0, max_value=10**9)


def test_five_million_tokens_at_eight_dollars_are_forty_dollars() -> None:
    assert price(input=8).cost(input_tokens=5_000_000, output_tokens=0) == Decimal(40)


@pytest.mark.covers("catalog", "price.input", "price.cached_input", "price.output")
def test_cached_tokens_are_a_part_of_the_input() -> None:
    known = price(input="0.15", cached_input="0.075", output="0.60")
    assert known.cost(input_tokens=1_000, cached_tokens=400, output_tokens=500) == Decimal("0.00042")


def test_more_cached_tokens_than_input_count_as_the_input() -> None:
    assert price(input=1, cached_input=2).cost(input_tokens=1_000_000, cached_tokens=9_999_999, output_tokens=0) == 2


@pytest.mark.covers("catalog", "price.cache_write")
def test_tokens_written_to_a_cache_are_a_part_of_the_input_too() -> None:
    known = price(input=1, cached_input="0.1", cache_write="1.25", output=0)
    cost = known.cost(input_tokens=1_000, cached_tokens=300, cache_write_tokens=500, output_tokens=0)
    assert cost == Decimal("0.000855")


@pytest.mark.covers("catalog", "price.currency")
@pytest.mark.parametrize(
    ("amounts", "tokens"),
    [
        ({"input": 1}, {"input_tokens": 1, "output_tokens": 1}),
        ({"output": 1}, {"input_tokens": 1, "output_tokens": 1}),
        ({"input": 1, "output": 1}, {"input_tokens": 2, "output_tokens": 1, "cached_tokens": 1}),
        ({"input": 1, "output": 1}, {"input_tokens": 2, "output_tokens": 1, "cache_write_tokens": 1}),
        ({"input": 1, "output": 1, "currency": "CNY"}, {"input_tokens": 1, "output_tokens": 1}),
        ({"input": 1, "output": 1}, {"input_tokens": 1, "output_tokens": 1, "tier": "flex"}),
        ({"input": 1, "output": 1, "flex": 0.5}, {"input_tokens": 1, "output_tokens": 1, "tier": "priority"}),
        ({"input": 1, "output": 1, "priority": 2}, {"input_tokens": 1, "output_tokens": 1, "tier": "other"}),
    ],
)
def test_a_cost_is_unknown_if_a_price_it_needs_is(amounts: dict[str, object], tokens: dict[str, Any]) -> None:
    assert price(**amounts).cost(**{"cached_tokens": 0, **tokens}) is None


def test_an_unknown_price_that_is_not_needed_does_not_matter() -> None:
    assert price(input=2).cost(input_tokens=500_000, output_tokens=0) == 1
    assert price(output=2).cost(input_tokens=0, output_tokens=500_000) == 1


def test_a_free_model_costs_nothing() -> None:
    assert price(input=0, output=0).cost(input_tokens=10, output_tokens=10) == 0


@untimed
@given(_AMOUNTS, _AMOUNTS, _AMOUNTS, _TOKENS, _TOKENS, _TOKENS)
def test_costs_are_exact(
    fresh: Decimal, cached: Decimal, output: Decimal, fresh_tokens: int, cached_tokens: int, output_tokens: int
) -> None:
    cost = price(input=fresh, cached_input=cached, output=output).cost(
        input_tokens=fresh_tokens + cached_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens
    )
    exact = Fraction(fresh) * fresh_tokens + Fraction(cached) * cached_tokens + Fraction(output) * output_tokens
    assert cost is not None
    assert Fraction(cost) == exact / 1_000_000
