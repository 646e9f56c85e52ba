"""`promptmill doctor` asks each kind of provider in its own way. (What else it does: tests/system.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from config.catalog import Catalog, load_catalog
from workers.commands import doctor

KEY = "sk-good-0123456789abcdef"
KINDS = [("openai", "openai"), ("azure", "azure"), ("anthropic", "anthropic")]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def catalog_at(simulator: Any, kind: str, **provider: Any) -> Catalog:
    table = {"kind": kind, "base_url": simulator.url, "api_keys": ["P_KEY"], **provider}
    return Catalog.model_validate(
        {"providers": {"p": table}, "models": {"m": {"provider": "p", "upstream": "nobody-has-this"}}}
    )


@pytest.mark.parametrize(("dialect", "kind"), KINDS)
async def test_a_good_key_is_told_from_a_bad_one(
    dialect: str,
    kind: str,
    simulate: Callable[..., Awaitable[Any]],
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulator = await simulate(dialect=dialect, api_key=KEY)
    catalog = catalog_at(simulator, kind)
    monkeypatch.setenv("P_KEY", KEY)
    found = await doctor._examine_provider(catalog, catalog.providers["p"], http)
    assert found[0].level == "ok", found[0].text
    missing = [finding.text for finding in found[1:]]
    assert missing == ([] if kind == "azure" else ["its list of models does not name nobody-has-this"])
    monkeypatch.setenv("P_KEY", "sk-evil-0123456789abcdef")
    [refused] = await doctor._examine_provider(catalog, catalog.providers["p"], http)
    assert (refused.level, "evil" in refused.text) == ("refused", False)


async def test_the_probe_has_the_catalogues_headers(
    raw_server: Any, reply: Any, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await raw_server(reply(200, b'{"data": []}', "Content-Type: application/json"))
    monkeypatch.setenv("P_KEY", KEY)
    catalog = catalog_at(server, "openai", headers={"X-Title": "mine"}, query={"v": "1"})
    await doctor._examine_provider(catalog, catalog.providers["p"], http)
    [request] = server.requests
    assert b"GET /v1/models?v=1 HTTP/1.1" in request
    assert b"X-Title: mine" in request


def test_presets_that_nobody_uses_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for provider in load_catalog().providers.values():
        for variable in provider.api_keys:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GROQ_API_KEY", "gsk-0123456789abcdef")
    [finding] = doctor._not_asked(doctor._unused(load_catalog()))
    assert "anthropic, gemini, openrouter" in finding.text
    assert "groq" not in finding.text and "openai" not in finding.text
