"""The presets say what the sources say, and nothing that no source says."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import orjson
import pytest
from pydantic import SecretStr

from config.catalog import load_catalog
from workers.prompt.job import PromptJob
from workers.providers import CODECS

PRESETS = load_catalog()


@pytest.mark.parametrize(
    ("name", "base_url", "variable"),
    [
        ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("holysheep", "https://api.holysheep.ai/v1", "HOLYSHEEP_API_KEY"),
        ("n1n", "https://api.n1n.ai/v1", "N1N_API_KEY"),
        ("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
        ("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        ("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
        ("deepseek", "https://api.deepseek.com", "DEEPSEEK_API_KEY"),
        ("dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
        ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
        ("together", "https://api.together.ai/v1", "TOGETHER_API_KEY"),
    ],
)
def test_each_provider_has_its_address_and_its_key(name: str, base_url: str, variable: str) -> None:
    provider = PRESETS.providers[name]
    assert (provider.base_url, provider.api_keys) == (base_url, (variable,))


@pytest.mark.parametrize(
    ("name", "url", "header"),
    [
        ("openai/m", "https://api.openai.com/v1/chat/completions", "Authorization"),
        ("anthropic/m", "https://api.anthropic.com/v1/messages", "x-api-key"),
        (
            "gemini/m",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
            "Authorization",
        ),
        ("openrouter/maker/m", "https://openrouter.ai/api/v1/chat/completions", "Authorization"),
        ("groq/m", "https://api.groq.com/openai/v1/chat/completions", "Authorization"),
        ("xai/m", "https://api.x.ai/v1/chat/completions", "Authorization"),
        ("deepseek/m", "https://api.deepseek.com/chat/completions", "Authorization"),
        (
            "dashscope/m",
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1/chat/completions",
            "Authorization",
        ),
        ("mistral/m", "https://api.mistral.ai/v1/chat/completions", "Authorization"),
        ("together/maker/m", "https://api.together.ai/v1/chat/completions", "Authorization"),
    ],
)
def test_each_provider_is_called_at_its_address_with_its_key(name: str, url: str, header: str) -> None:
    model = PRESETS.model(name)
    provider = PRESETS.provider(model)
    job = PromptJob("j", "chat", name, {"model": name, "messages": [{"role": "user", "content": "Hi"}]})
    request = CODECS[provider.kind].request(job, model=model, provider=provider, key=SecretStr("canary"))
    assert request.url == url
    assert request.headers[header].removeprefix("Bearer ") == "canary"
    assert orjson.loads(request.body)["model"] == name.partition("/")[2]


@pytest.mark.parametrize(
    ("alias", "prices"),
    [
        ("gpt-4o-mini", ("0.15", "0.60")),
        ("deepseek-v3.2", ("0.42", "0.42")),
        ("gemini-2.5-flash", ("2.50", "10")),
        ("claude-sonnet-4.5", (None, "15")),
        ("holysheep/gpt-4.1", ("8", "24")),
        ("holysheep/gpt-4o-mini", (None, "0.60")),
    ],
)
def test_prices_are_the_sources(alias: str, prices: tuple[str | None, str | None]) -> None:
    price = PRESETS.model(alias).price
    assert price is not None
    assert (price.input, price.output) == tuple(None if text is None else Decimal(text) for text in prices)


@pytest.mark.parametrize(
    ("alias", "flex", "priority"),
    [
        ("gpt-4.1", None, "1.75"),
        ("gpt-4o", None, "1.7"),
        ("gpt-5", "0.5", "2"),
        ("gpt-5-mini", "0.5", "1.8"),
        ("o3", "0.5", None),
        ("o4-mini", "0.5", None),
    ],
)
def test_factors_of_tiers_are_the_sources(alias: str, flex: str | None, priority: str | None) -> None:
    model = PRESETS.model(alias)
    assert model.price is not None
    wanted = tuple(None if text is None else Decimal(text) for text in (flex, priority))
    assert (model.price.flex, model.price.priority) == wanted
    assert not model.flex, "to wait for hours is the user's to want"


@pytest.mark.parametrize(("alias", "rpm", "tpm"), [("gpt-4o", 500, 30_000), ("gpt-4o-mini", 5_000, 200_000)])
def test_limits_are_the_sources(alias: str, rpm: int, tpm: int) -> None:
    limits = PRESETS.model(alias).limits
    assert (limits.rpm, limits.tpm) == (rpm, tpm)


def test_a_model_without_an_input_price_costs_an_unknown_amount() -> None:
    price = PRESETS.model("claude-sonnet-4.5").price
    assert price is not None
    assert price.cost(input_tokens=10, output_tokens=10) is None


def test_each_price_has_a_source_and_a_day_that_has_been() -> None:
    prices = [model.price for model in PRESETS.models.values() if model.price is not None]
    assert prices
    assert all(len(price.source) > 10 for price in prices)
    assert all(dt.date(2025, 1, 1) <= price.date <= dt.date(2026, 11, 28) for price in prices)


def test_no_preset_takes_any_model() -> None:
    assert "*" not in PRESETS.aliases()
