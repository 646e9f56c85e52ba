"""Answers as a client sees them: chat, streams, embeddings, models, keys, limits and the books."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import struct
import time
from typing import Any

import aiohttp
import pytest

from tests.support.waiting import wait_until_async
from workers.simulator import FAULT_HEADER, JOB_ID_HEADER, RunningSimulator, SimulatorOptions, prompt_hash
from workers.simulator.ledger import Call
from workers.simulator.provider import Incoming, Plan, Provider

from .conftest import Start, ledger, question


async def ask(
    http: aiohttp.ClientSession, simulator: RunningSimulator, body: Any, *, path: str = "/chat/completions"
) -> dict[str, Any]:
    async with http.post(simulator.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def read_events(response: aiohttp.ClientResponse) -> list[str]:
    text = (await response.read()).decode()
    return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


async def test_a_chat_answer_has_openais_shape(simulate: Start, http: aiohttp.ClientSession) -> None:
    answer = await ask(http, await simulate(), question("x" * 400))
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-4o-mini"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 100
    assert usage["total_tokens"] == 100 + usage["completion_tokens"]


async def test_questions_with_numbers_have_answers_of_their_own(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    texts = set()
    for apples in range(20):
        answer = await ask(http, simulator, question(f"Tom has {apples} apples and 3,000.5 pears."))
        text = answer["choices"][0]["message"]["content"]
        assert f"{apples} and 3,000.5" in text
        texts.add(text)
    assert len(texts) == 20


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_cuts_the_answer(simulate: Start, http: aiohttp.ClientSession, field: str) -> None:
    answer = await ask(http, await simulate(), question() | {field: 5})
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["message"]["content"]) == 20


async def test_the_mean_length_is_the_one_asked_for(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(output_tokens=80)
    used = [(await ask(http, simulator, question(f"Question {n}")))["usage"]["completion_tokens"] for n in range(200)]
    assert sum(used) / len(used) == pytest.approx(80, rel=0.15)
    assert len(set(used)) > 20


async def test_several_choices(simulate: Start, http: aiohttp.ClientSession) -> None:
    answer = await ask(http, await simulate(), question(n=3))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3


async def test_a_stream_carries_the_same_answer_in_pieces(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    plain = await ask(http, simulator, question())
    body = question(stream=True, stream_options={"include_usage": True})
    async with http.post(simulator.url + "/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        *events, done = await read_events(response)
    assert done == "[DONE]"
    *chunks, last = [json.loads(event) for event in events]
    assert last["choices"] == []
    assert last["usage"] == plain["usage"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert len(deltas) > 5
    assert "".join(delta.get("content", "") for delta in deltas) == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_without_usage_does_not_mention_it(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    async with http.post(simulator.url + "/chat/completions", json=question(stream=True)) as response:
        *events, _done = await read_events(response)
    assert all("usage" not in json.loads(event) for event in events)


async def test_embeddings_are_unit_vectors_that_know_their_text(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    body = {"model": "text-embedding-3-small", "input": ["a cat", "a dog", "a cat"], "dimensions": 64}
    answer = await ask(http, simulator, body, path="/embeddings")
    cat, dog, cat_again = (row["embedding"] for row in answer["data"])
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert len(cat) == 64
    assert math.hypot(*cat) == pytest.approx(1)
    assert cat == cat_again != dog
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    packed = await ask(http, simulator, {**body, "encoding_format": "base64"}, path="/embeddings")
    assert struct.unpack("<64f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(cat)


@pytest.mark.parametrize("asked", ["one text", [1, 2, 3], [[1, 2], [3]]])
async def test_embeddings_take_texts_and_tokens(simulate: Start, http: aiohttp.ClientSession, asked: Any) -> None:
    answer = await ask(http, await simulate(), {"model": "m", "input": asked}, path="/embeddings")
    assert len(answer["data"]) == (2 if isinstance(asked[0], list) else 1)
    assert len(answer["data"][0]["embedding"]) == 1536


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", b"{not json", None),
        ("/chat/completions", b"[]", None),
        ("/chat/completions", b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        ("/chat/completions", b'{"model":"m","messages":[]}', "messages"),
        ("/chat/completions", b'{"model":"m","messages":["x"]}', "messages"),
        ("/chat/completions", b'{"model":"m","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens"),
        ("/embeddings", b'{"model":"m","input":[]}', "input"),
        ("/embeddings", b'{"model":"m","input":["x",""]}', "input"),
        ("/embeddings", b'{"model":"m","input":"x","dimensions":99999}', "dimensions"),
    ],
)
async def test_a_bad_request_is_400_and_names_the_field(
    simulate: Start, http: aiohttp.ClientSession, path: str, body: bytes, param: str | None
) -> None:
    simulator = await simulate()
    async with http.post(simulator.url + path, data=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_a_large_prompt_is_taken(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    body = io.BytesIO(json.dumps(question("x" * 20_000_000)).encode())
    async with http.post(simulator.url + "/chat/completions", data=body) as response:
        assert (await response.json())["usage"]["prompt_tokens"] == 5_000_000


async def test_unknown_paths_and_methods_say_where_to_go(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    async with http.get(simulator.url + "/images/generations") as response:
        assert response.status == 404
    async with http.get(simulator.url + "/chat/completions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_only_the_right_key_is_let_in(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(api_key="sk-right")
    statuses = []
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "Bearer sk-right"}):
        async with http.post(simulator.url + "/chat/completions", json=question(), headers=headers) as response:
            statuses.append(response.status)
        async with http.get(simulator.url + "/models", headers=headers) as response:
            assert response.status == statuses[-1]
    assert statuses == [401, 401, 200]
    calls = await ledger(http, simulator)
    assert [call["authorized"] for call in calls] == [False, False, True]


async def test_models_are_listed_and_cost_no_call(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    async with http.get(simulator.url + "/models") as response:
        rows = (await response.json())["data"]
    assert "gpt-4o-mini" in [row["id"] for row in rows]
    assert simulator.stats()["calls"] == 0


@pytest.mark.parametrize("algorithm", ["bucket", "sliding", "fixed"])
async def test_over_the_limit_is_a_real_429(simulate: Start, http: aiohttp.ClientSession, algorithm: str) -> None:
    # Fixed windows turn somewhere in the minute: 1 + 2 calls can't all pass, wherever that is.
    simulator = await simulate(rpm=1, algorithm=algorithm)
    for _ in range(3):
        async with http.post(simulator.url + "/chat/completions", json=question()) as response:
            if response.status == 429:
                headers, body = response.headers.copy(), await response.json()
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert body["error"]["type"] == "requests"
    assert 1 <= int(headers["Retry-After"]) <= 60
    assert int(headers["retry-after-ms"]) <= 1000 * int(headers["Retry-After"])
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert simulator.stats()["rate_limited"] == simulator.stats()["by_status"]["429"]


async def test_each_key_and_each_model_has_its_own_limit(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(rpm=1, algorithm="sliding")

    async def status(key: str, model: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        body = {**question(), "model": model}
        async with http.post(simulator.url + "/chat/completions", json=body, headers=headers) as response:
            return response.status

    callers = [("a", "m"), ("b", "m"), ("a", "n"), ("a", "m")]
    assert [await status(key, model) for key, model in callers] == [200, 200, 200, 429]


@pytest.mark.parametrize(("charge", "admitted"), [("usage", True), ("reserved", False)])
async def test_tokens_are_charged_as_used_or_as_reserved(
    simulate: Start, http: aiohttp.ClientSession, charge: str, admitted: bool
) -> None:
    simulator = await simulate(tpm=2_000, algorithm="sliding", tpm_charge=charge, output_tokens=10)
    body = question(max_tokens=1_500)
    statuses = []
    for _ in range(2):
        async with http.post(simulator.url + "/chat/completions", json=body) as response:
            statuses.append(response.status)
    assert statuses == [200, 200 if admitted else 429]


async def test_a_call_larger_than_the_limit_is_told_no_time(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(tpm=100, algorithm="sliding")
    async with http.post(simulator.url + "/chat/completions", json=question("x" * 800)) as response:
        assert response.status == 429
        assert "Retry-After" not in response.headers
        assert "Request too large" in (await response.json())["error"]["message"]


async def test_the_ledger_tells_each_call_but_no_prompt_and_no_key(
    simulate: Start, http: aiohttp.ClientSession
) -> None:
    simulator = await simulate()
    headers = {JOB_ID_HEADER: "job-1", "Authorization": "Bearer canary-key", FAULT_HEADER: "500"}
    body = question("canary-prompt 7")
    async with http.post(simulator.url + "/chat/completions", json=body, headers=headers) as response:
        request_id = response.headers["x-request-id"]
    answer = await ask(http, simulator, body)
    failed, succeeded = await ledger(http, simulator)
    assert failed["job_id"] == "job-1"
    assert failed["request_id"] == request_id
    assert (failed["status"], failed["fault"], failed["attempt"], failed["completion_tokens"]) == (500, "500", 0, 0)
    assert (succeeded["status"], succeeded["fault"], succeeded["attempt"]) == (200, None, 1)
    assert succeeded["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert succeeded["prompt_hash"] == failed["prompt_hash"] == prompt_hash(body["messages"])
    assert (failed["authorized"], succeeded["authorized"]) == (True, False)
    assert "canary" not in json.dumps([failed, succeeded])


async def test_the_ledger_keeps_the_latest_and_the_totals_count_on(
    simulate: Start, http: aiohttp.ClientSession
) -> None:
    simulator = await simulate(ledger_limit=2)
    for number in range(5):
        await ask(http, simulator, question(f"Question {number}"))
    hashes = [call["prompt_hash"] for call in await ledger(http, simulator)]
    assert hashes == [prompt_hash(question(f"Question {number}")["messages"]) for number in (3, 4)]
    assert simulator.stats()["calls"] == 5


async def test_reset_forgets_calls_and_totals(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    await ask(http, simulator, question())
    root = simulator.url.removesuffix("/v1")
    async with http.post(root + "/__reset") as response:
        assert response.status == 200
    assert await ledger(http, simulator) == []
    async with http.get(root + "/__stats") as response:
        stats = await response.json()
    assert (stats["calls"], stats["by_status"], stats["completion_tokens"]) == (0, {}, 0)
    assert stats == simulator.stats()


async def test_stats_count_connections_and_calls_at_once(simulate: Start) -> None:
    simulator = await simulate(latency_ms=60_000)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=3)) as http:
        asking = [asyncio.create_task(ask(http, simulator, question(f"{n}"))) for n in range(3)]
        await wait_until_async(lambda: simulator.stats()["in_flight"] == 3, description="three calls in flight")
        stats = simulator.stats()
        assert (stats["connections"], stats["open_connections"], stats["peak_in_flight"]) == (3, 3, 3)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    await wait_until_async(lambda: simulator.stats()["in_flight"] == 0, description="no call in flight")
    assert simulator.stats()["peak_in_flight"] == 3
    assert simulator.stats()["open_connections"] == 0


async def test_a_client_that_goes_away_is_noticed_at_once(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(latency_ms=60_000)
    asking = asyncio.create_task(ask(http, simulator, question()))
    await wait_until_async(lambda: simulator.stats()["in_flight"] == 1, description="a call in flight")
    asking.cancel()
    await wait_until_async(lambda: simulator.stats()["cancelled"] == 1, description="its client's leaving noticed")
    (call,) = await ledger(http, simulator)
    assert (call["cancelled"], call["status"], call["completion_tokens"]) == (True, None, 0)
    assert simulator.stats()["by_status"] == {"none": 1}


async def test_connections_are_kept_alive(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    for number in range(10):
        await ask(http, simulator, question(f"{number}"))
    assert simulator.stats()["connections"] == 1


def plans(seed: int, questions: list[str], **options: Any) -> dict[str, list[Plan]]:
    """Ask a provider without a socket; for each question, in order, what it planned."""
    provider = Provider(SimulatorOptions(seed=seed, **options))
    made: dict[str, list[Plan]] = {text: [] for text in questions}
    for text in questions:
        call = Call(time=0.0, path="/v1/chat/completions", request_id="r", authorized=True)
        body = json.dumps(question(text)).encode()
        made[text].append(provider.plan(call, body, Incoming(), now_s=0.0))
    return made


def test_a_seed_repeats_answers_faults_and_latencies() -> None:
    questions = [f"Question {number}" for number in range(50)] * 2
    options = {"faults": {"429": 0.2, "500": 0.2}, "jitter": 0.3}
    first = plans(7, questions, **options)
    assert plans(7, questions[::-1], **options) == first
    assert plans(8, questions, **options) != first
    assert any(once.fault != again.fault for once, again in first.values()), "each attempt is drawn anew"


def test_refused_calls_do_not_change_what_is_drawn_for_the_next() -> None:
    free = plans(1, ["Question"] * 2, jitter=0.5)["Question"]
    provider = Provider(SimulatorOptions(seed=1, jitter=0.5, rpm=1))
    drawn = []
    for now_s in (0.0, 1.0, 2.0, 60.0):
        call = Call(time=0.0, path="/v1/chat/completions", request_id="r", authorized=True)
        body = json.dumps(question("Question")).encode()
        plan = provider.plan(call, body, Incoming(), now_s=now_s)
        if not call.rate_limited:
            drawn.append(plan.first_s)
    assert drawn == [plan.first_s for plan in free]


def test_latency_has_the_mean_and_spread_asked_for() -> None:
    questions = [f"Question {number}" for number in range(2_000)]
    drawn = [plan.first_s for (plan,) in plans(3, questions, latency_ms=200, jitter=0.5).values()]
    mean = sum(drawn) / len(drawn)
    spread = math.sqrt(sum((s - mean) ** 2 for s in drawn) / len(drawn)) / mean
    assert mean == pytest.approx(0.2, rel=0.05)
    assert spread == pytest.approx(0.5, rel=0.15)
    exact = plans(3, questions[:20], latency_ms=200, jitter=0)
    assert {plan.first_s for (plan,) in exact.values()} == {0.2}


def test_shares_of_faults_come_out_as_asked() -> None:
    questions = [f"Question {number}" for number in range(2_000)]
    made = plans(5, questions, faults={"500": 0.1})
    assert sum(plan.fault is not None for (plan,) in made.values()) / 2_000 == pytest.approx(0.1, abs=0.02)


async def test_the_flex_tier_is_slower_and_may_have_no_room(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(flex_latency_ms=300, jitter=0, faults={"flex-full": 0.5})
    seen: dict[Any, list[float]] = {}
    for n in range(12):
        for tier in ({}, {"service_tier": "default"}, {"service_tier": "flex"}):
            began_at = time.monotonic()
            async with http.post(simulator.url + "/chat/completions", json=question(f"number {n}", **tier)) as response:
                body = await response.json()
            served = body["error"]["code"] if response.status == 429 else body.get("service_tier")
            seen.setdefault((tier.get("service_tier"), served), []).append(time.monotonic() - began_at)
    assert seen.keys() == {(None, None), ("default", "default"), ("flex", "flex"), ("flex", "resource_unavailable")}
    assert min(seen["flex", "flex"]) >= 0.3 > min(seen["flex", "resource_unavailable"])
    calls = [call for call in await ledger(http, simulator) if call["fault"] == "flex-full"]
    assert {(call["tier"], call["prompt_tokens"], call["completion_tokens"]) for call in calls} == {("flex", 0, 0)}


async def test_responses_go_by_the_flex_tier_too(simulate: Start, http: aiohttp.ClientSession) -> None:
    for faults, expected in (({}, (200, "flex")), ({"flex-full": 1.0}, (429, "resource_unavailable"))):
        simulator = await simulate(faults=faults)
        body = {"model": "gpt-4o-mini", "input": "How many?", "service_tier": "flex"}
        async with http.post(simulator.url + "/responses", json=body) as response:
            said = await response.json()
        assert (response.status, said["error"]["code"] if said["error"] else said["service_tier"]) == expected
