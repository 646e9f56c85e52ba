"""What the simulated provider speaks in each dialect, byte by byte where clients trip over it."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from workers.simulator.dialects import DIALECTS

from .conftest import question

MESSAGE = {"model": "claude-sonnet-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": "2 + 2?"}]}
VERSION = {"anthropic-version": "2023-06-01", "x-api-key": "sk-1"}


async def post(http: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(url, json=body, headers=headers) as response:
        return response.status, await response.json(content_type=None), response.headers


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_each_lists_its_models_where_its_clients_look(
    dialect: str, simulate: Any, http: aiohttp.ClientSession
) -> None:
    simulator = await simulate(dialect=dialect)
    async with http.get(f"{simulator.url}/models") as response:
        assert response.status == 200
        assert {row["id"] for row in (await response.json())["data"]} >= {"gpt-4o-mini"}
    async with http.get(f"http://127.0.0.1:{simulator.port}/nowhere") as response:
        assert response.status == 404


async def test_anthropic_wants_its_version_and_max_tokens(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="anthropic", api_key="sk-1")
    url = f"{simulator.url}/messages"
    status, body, headers = await post(http, url, MESSAGE, x_api_key="sk-1")
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert headers["request-id"].startswith("req_")
    without = {name: value for name, value in MESSAGE.items() if name != "max_tokens"}
    for wrong in (without, {**MESSAGE, "n": 1}, {**MESSAGE, "temperature": 2}, {**MESSAGE, "messages": []}):
        assert (await post(http, url, wrong, **VERSION))[0] == 400
    assert (await post(http, url, MESSAGE, **{**VERSION, "x-api-key": "sk-2"}))[0] == 401
    assert (await post(http, url, MESSAGE, **VERSION))[0] == 200


async def test_anthropics_stream_is_of_named_events(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="anthropic")
    async with http.post(f"{simulator.url}/messages", json={**MESSAGE, "stream": True}, headers=VERSION) as response:
        lines = (await response.text()).splitlines()
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(events[2:-3]) == {"content_block_delta"}


async def test_azures_deployment_is_the_model(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="azure", rpm=60)
    classic = f"http://127.0.0.1:{simulator.port}/openai/deployments/mine/chat/completions?api-version=2024-10-21"
    status, body, headers = await post(http, classic, question(), api_key="k")
    assert (status, body["object"]) == (200, "chat.completion")
    assert "x-ratelimit-limit-requests" not in headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    status, body, headers = await post(http, classic, question(), api_key="k")
    assert (status, body["error"]["code"]) == (429, "429")
    assert int(headers["Retry-After"]) >= 1
    status, _, _ = await post(http, f"{simulator.url}/chat/completions", question(), api_key="k")
    assert status == 200, "another deployment has a limit of its own"


async def test_geminis_errors_are_a_list_and_hold_the_wait(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="gemini", rpm=60, algorithm="sliding")
    answers = [await post(http, f"{simulator.url}/chat/completions", question()) for _ in range(61)]
    status, [refused], headers = answers[-1]
    assert (status, refused["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert refused["error"]["details"][0]["retryDelay"].endswith("s")
    assert not [name for name in headers if "ratelimit" in name.lower() or name.lower() == "retry-after"]


async def test_mistral_refuses_a_field_that_it_does_not_know(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="mistral", rpm=60, tpm=9_000, algorithm="sliding")
    url = f"{simulator.url}/chat/completions"
    status, body, _ = await post(http, url, question(metadata_of_ours=1))
    assert (status, body["param"]) == (422, "metadata_of_ours")
    status, _, headers = await post(http, url, question())
    assert (status, headers["x-ratelimit-limit-req-minute"]) == (200, "60")
    assert headers["x-ratelimit-limit-tokens-minute"] == "9000"


async def test_groqs_header_for_requests_is_the_days(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="groq", rpm=60, tpm=9_000)
    _, _, headers = await post(http, f"{simulator.url}/chat/completions", question())
    assert headers["x-ratelimit-limit-requests"] == "14400"
    assert headers["x-ratelimit-limit-tokens"] == "9000"


async def test_deepseek_sends_blank_lines_before_its_answer(simulate: Any, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="deepseek")
    async with http.post(f"{simulator.url}/chat/completions", json=question()) as response:
        assert (await response.read()).startswith(b"\n\n\n{")
