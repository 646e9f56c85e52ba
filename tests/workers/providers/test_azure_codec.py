"""Azure OpenAI's addresses and keys, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import SecretStr

from config.catalog import Catalog, Provider
from workers.prompt.job import PromptJob
from workers.providers import ProviderRequest
from workers.providers.azure import AzureCodec

CODEC = AzureCodec()
CHAT = PromptJob("job-1", "chat", "m", {"model": "m", "messages": [{"role": "user", "content": "q"}]})
EMBED = PromptJob("job-1", "embed", "m", {"model": "m", "input": "q"})
CLASSIC = {"base_url": "https://res.openai.azure.com/", "query": {"api-version": "2024-10-21"}}
V1 = {"base_url": "https://res.openai.azure.com/openai/v1"}


def provider_of(**fields: Any) -> Provider:
    return Catalog.model_validate({"providers": {"p": {"kind": "azure", **fields}}}).providers["p"]


def request(job: PromptJob, *, upstream: str = "my-deployment", **fields: Any) -> ProviderRequest:
    tables = {
        "providers": {"p": {"kind": "azure", **fields}},
        "models": {"m": {"provider": "p", "upstream": upstream}},
    }
    catalog = Catalog.model_validate(tables)
    return CODEC.request(job, model=catalog.model("m"), provider=catalog.providers["p"], key=SecretStr("k" * 32))


@pytest.mark.covers("catalog", "providers.query")
@pytest.mark.parametrize(
    ("job", "fields", "url"),
    [
        (CHAT, CLASSIC, "https://res.openai.azure.com/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"),
        (EMBED, CLASSIC, "https://res.openai.azure.com/openai/deployments/my-deployment/embeddings?api-version=2024-10-21"),
        (CHAT, V1, "https://res.openai.azure.com/openai/v1/chat/completions"),
        (EMBED, {**V1, "query": {"api-version": "preview"}}, "https://res.openai.azure.com/openai/v1/embeddings?api-version=preview"),
    ],
)  # fmt: skip
def test_both_forms_of_address(job: PromptJob, fields: dict[str, Any], url: str) -> None:
    found = request(job, **fields)
    assert found.url == url
    assert json.loads(found.body) == {**job.body, "model": "my-deployment"}


def test_a_jobs_name_cannot_leave_its_place_in_the_path() -> None:
    assert "/deployments/..%2F..%2Fx/chat" in request(CHAT, upstream="../../x", **CLASSIC).url


def test_the_key_has_azures_header() -> None:
    headers = request(CHAT, **V1, headers={"x-ms-client": "a"}).headers
    assert headers == {
        "Content-Type": "application/json",
        "x-promptmill-job-id": "job-1",
        "x-ms-client": "a",
        "api-key": "k" * 32,
    }


def test_entras_token_is_a_bearer_token() -> None:
    headers = request(CHAT, **V1, auth="bearer").headers
    assert headers["Authorization"] == "Bearer " + "k" * 32
    assert "api-key" not in headers


@pytest.mark.parametrize(
    ("fields", "url"),
    [(CLASSIC, "https://res.openai.azure.com/openai/models?api-version=2024-10-21"), (V1, V1["base_url"] + "/models")],
)
def test_the_probe_asks_for_models_and_not_for_deployments(fields: dict[str, Any], url: str) -> None:
    probe = CODEC.probe(provider_of(**fields), SecretStr("k" * 32))
    assert (probe.url, probe.names_models) == (url, False)
    assert probe.headers == {"api-key": "k" * 32}
    assert "kkk" not in repr(probe)


def test_a_classic_address_needs_a_version() -> None:
    with pytest.raises(ValueError, match="api-version"):
        provider_of(base_url="https://res.openai.azure.com")
