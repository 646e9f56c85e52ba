"""Embeddings of many jobs in one call, and of one job in several, against the simulated provider."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import Any

import pytest

from config.settings import Settings
from tasks.wire.record import read_outcome
from tasks.wire.vectors import MARK, numbers_of
from tests.support.scripted import Answer, Asked, ScriptedProvider
from tests.support.stopwatch import Stopwatch
from workers.prompt.failure import Failure
from workers.prompt.job import Options, PromptJob
from workers.prompt.parked import Parked
from workers.simulator import SimulatorOptions
from workers.simulator.answers.replies import embedding_body
from workers.simulator.request import read_embedding

DIMENSIONS = 8


def job(number: int, value: Any, *, body: dict[str, Any] | None = None, **options: Any) -> PromptJob:
    fields = {"model": "e", "input": value, **(body or {})}
    return PromptJob(f"job-{number}", "embed", "e", fields, Options(**{"vectors": "base64", **options}))


def vectors(result: Any) -> list[list[float]]:
    assert result.ok, result.error
    rows = result.response["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [numbers_of(each) if isinstance(each := row["embedding"], str) else each for row in rows]


def expected(texts: list[Any], *, model: str = "upstream-e") -> list[list[float]]:
    """What the simulator says to these, each asked for by itself."""
    found = []
    for text in texts:
        request = read_embedding(json.dumps({"model": model, "input": text, "encoding_format": "base64"}).encode())
        body = json.loads(embedding_body(request, seed=SimulatorOptions().seed, dimensions=DIMENSIONS))
        found.append(numbers_of(body["data"][0]["embedding"]))
    return found


def ledger(simulator: Any) -> list[dict[str, Any]]:
    with urllib.request.urlopen(simulator.url.removesuffix("/v1") + "/__ledger") as answer:
        return list(json.load(answer)["calls"])


async def calls_of(simulator: Any) -> list[dict[str, Any]]:
    return await asyncio.to_thread(ledger, simulator)


@pytest.fixture
async def simulator(simulate: Any) -> Any:
    return await simulate(embedding_dimensions=DIMENSIONS, latency_ms=20)


@pytest.mark.promise(55)
async def test_many_jobs_share_few_calls(pipeline_to: Any, simulator: Any) -> None:
    texts = [f"text {n} " * (1 + n % 7) for n in range(300)]
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, text)) for n, text in enumerate(texts)))
    assert [vectors(result)[0] for result in results] == expected(texts)
    calls = await calls_of(simulator)
    assert len(calls) == 2, "the first went by itself"
    assert sum(result.usage.input_tokens for result in results) == sum(call["prompt_tokens"] for call in calls)
    assert {result.attempts for result in results} == {1}
    assert [result.id for result in results] == [f"job-{n}" for n in range(300)]


@pytest.mark.covers("catalog", "models.max_inputs")
async def test_a_call_takes_no_more_inputs_than_the_model(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_inputs=10) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, f"text {n}")) for n in range(51)))
    assert all(result.ok for result in results)
    assert [call["inputs"] for call in await calls_of(simulator)] == [1, 10, 10, 10, 10, 10]


@pytest.mark.covers("catalog", "models.max_input_tokens")
async def test_a_call_takes_no_more_tokens_than_the_model(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_input_tokens=1_000) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, "x" * 400)) for n in range(41)))
    assert all(result.ok for result in results)
    calls = await calls_of(simulator)
    assert max(call["prompt_tokens"] for call in calls) <= 1_000
    assert len(calls) <= 7


@pytest.mark.promise(55)
async def test_a_large_job_is_split_and_comes_back_in_order(pipeline_to: Any, simulator: Any) -> None:
    texts = [f"text {n}" for n in range(95)]
    price = {"input": 1, "date": "2026-01-01", "source": "a test"}
    async with pipeline_to(simulator.url, real_time=True, max_inputs=30, price=price) as pipeline:
        result = await pipeline.run(job(1, texts))
    assert vectors(result) == expected(texts)
    calls = await calls_of(simulator)
    assert [call["inputs"] for call in calls] == [30, 30, 30, 5]
    assert result.attempts == 1
    total = sum(call["prompt_tokens"] for call in calls)
    assert (result.usage.input_tokens, result.response["usage"]["prompt_tokens"]) == (total, total)
    assert result.cost_usd == pytest.approx(total / 1e6)


async def test_token_ids_and_texts_go_apart(pipeline_to: Any, simulator: Any) -> None:
    inputs: list[Any] = ["one", [1, 2, 3], "two", [4, 5], ["three", "four"], [[6], [7, 8]]]
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, value)) for n, value in enumerate(inputs)))
    assert vectors(results[3]) == expected([[4, 5]])
    assert vectors(results[4]) == expected(["three", "four"])
    assert vectors(results[5]) == expected([[6], [7, 8]])
    assert sum(call["inputs"] for call in await calls_of(simulator)) == 8


async def test_jobs_whose_requests_differ_share_no_call(pipeline_to: Any, simulator: Any) -> None:
    bodies: list[dict[str, Any]] = [{}, {"dimensions": 4}, {"user": "a"}, {"user": "b"}, {"encoding_format": "float"}]
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, "same", body=each)) for n, each in enumerate(bodies)))
    assert [len(vectors(result)[0]) for result in results] == [8, 4, 8, 8, 8]
    assert isinstance(results[4].response["data"][0]["embedding"], list)
    assert len(await calls_of(simulator)) == 5


@pytest.mark.promise(33)
async def test_a_poison_input_fails_alone_and_is_named(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, poison="POISON", latency_ms=20)
    texts = [f"text {n}" for n in range(256)]
    jobs = [job(0, "first"), *(job(1 + n, text) for n, text in enumerate(texts))]
    jobs[100] = job(100, ["fine", "this is POISON", "fine too"])
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*map(pipeline.run, jobs))
    failed = [result for result in results if not result.ok]
    assert [(result.id, result.error.code) for result in failed] == [("job-100", "bad_request")]
    assert "it is input 1 of the job" in failed[0].error.message
    assert "POISON" not in failed[0].error.message
    assert vectors(results[57]) == expected([texts[56]])
    further = len(await calls_of(simulator)) - 2
    assert further <= 12


async def test_a_poison_that_comes_again_alone_is_named(pipeline_to: Any) -> None:
    """The others of its job had their vectors before its second attempt."""

    def answer(asked: Asked) -> Answer:
        texts = asked.body["input"]
        if "POISON" not in texts:
            rows = [{"index": n, "embedding": [0.5] * DIMENSIONS} for n in range(len(texts))]
            return Answer(200, {"data": rows, "usage": {"prompt_tokens": 4, "total_tokens": 4}})
        if sum("POISON" in each.body["input"] for each in provider.asked) == 1:
            return Answer(503, {"error": {"message": "not now"}})
        return Answer(400, {"error": {"message": "'$.input' is invalid", "type": "invalid_request_error"}})

    provider = ScriptedProvider(answer)
    try:
        async with pipeline_to(provider.base_url, real_time=True, max_inputs=2) as pipeline:
            result = await pipeline.run(job(0, ["fine", "fine too", "POISON"]))
    finally:
        provider.close()
    assert sorted(each.body["input"] for each in provider.asked) == [["POISON"], ["POISON"], ["fine", "fine too"]]
    assert (result.error.code, [each.code for each in result.failed_attempts][:1]) == ("bad_request", ["server_error"])
    assert "it is input 2 of the job" in result.error.message


@pytest.mark.promise(33)
async def test_several_poisons_fail_alone(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, poison="POISON", latency_ms=5)
    bad = {3, 77, 78, 200}
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(
            *(pipeline.run(job(n, f"POISON {n}" if n in bad else f"text {n}")) for n in range(256))
        )
    assert {n for n, result in enumerate(results) if not result.ok} == bad
    assert len(await calls_of(simulator)) <= 2 + 10 * len(bad)


async def test_a_request_that_is_refused_whatever_it_holds(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, poison="text", latency_ms=5)
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, f"text {n}")) for n in range(256)))
    assert {result.error.code for result in results} == {"bad_request"}
    assert len(await calls_of(simulator)) <= 40


async def test_another_field_that_is_refused_is_not_looked_into(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS)
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, f"t{n}", body={"dimensions": 0})) for n in range(20)))
    assert {result.error.code for result in results} == {"bad_request"}
    assert len(await calls_of(simulator)) == 2


@pytest.mark.promise(33)
async def test_a_call_that_is_too_large_teaches_the_cap(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, max_inputs=64, latency_ms=5)
    texts = [f"text {n}" for n in range(256)]
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        first = await pipeline.run(job(1, texts))
        assert vectors(first) == expected(texts)
        before = len(await calls_of(simulator))
        assert (await pipeline.run(job(2, texts))).ok
    calls = (await calls_of(simulator))[before:]
    assert [(call["inputs"], call["status"]) for call in calls] == [(64, 200)] * 4


async def test_a_rate_limit_is_nobodys_fault(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate("429", embedding_dimensions=DIMENSIONS)
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, f"text {n}", max_attempts=1)) for n in range(20)))
    assert {result.error.code for result in results} == {"rate_limited"}
    assert len(await calls_of(simulator)) == 2
    assert all(result.attempts == 1 and len(result.failed_attempts) == 1 for result in results)


async def test_a_failed_call_is_tried_again_by_each_job(pipeline_to: Any, simulate: Any, raw_server: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS)
    simulator.strike({"500": 1.0})
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        running = [asyncio.create_task(pipeline.run(job(n, f"text {n}"))) for n in range(20)]
        while len(await calls_of(simulator)) < 2:
            await asyncio.sleep(0.01)
        simulator.strike({})
        results = await asyncio.gather(*running)
    # A retry may come before the provider works again.
    assert all(result.ok and result.attempts == 1 + len(result.failed_attempts) >= 2 for result in results)
    assert {attempt.code for result in results for attempt in result.failed_attempts} == {"server_error"}


@pytest.mark.promise(54)
async def test_a_cancelled_job_leaves_and_the_others_are_answered(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, latency_ms=200)
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        running = [asyncio.create_task(pipeline.run(job(n, f"text {n}"))) for n in range(10)]
        while len(await calls_of(simulator)) < 2:
            await asyncio.sleep(0.01)
        running[4].cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
    assert isinstance(results[4], asyncio.CancelledError)
    assert [vectors(results[n]) for n in (0, 3, 9)] == [expected([f"text {n}"]) for n in (0, 3, 9)]
    assert not any(call["cancelled"] for call in await calls_of(simulator))


@pytest.mark.promise(54)
async def test_a_call_that_nobody_wants_is_stopped(pipeline_to: Any, simulate: Any, wait_until: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, latency_ms=30_000)
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        running = [asyncio.create_task(pipeline.run(job(n, f"text {n}"))) for n in range(5)]
        while len(await calls_of(simulator)) < 2:
            await asyncio.sleep(0.01)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await wait_until(lambda: simulator.stats()["cancelled"] == 2, "both calls are closed")


@pytest.mark.promise(54)
async def test_a_deadline_ends_one_job_of_a_call(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, latency_ms=500)
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        late = job(5, "late", deadline_at=time.time() + 0.2)
        results = await asyncio.gather(*(pipeline.run(job(n, f"text {n}")) for n in range(5)), pipeline.run(late))
    assert [result.status for result in results] == ["succeeded"] * 5 + ["expired"]
    assert results[5].failed_attempts[0].suspected_payment


async def test_a_pack_whose_turn_is_far_parks_its_jobs(pipeline_to: Any, simulator: Any, free_limits: Any) -> None:
    free_limits.raises = [None, Parked(9e9, "far away", gap_s=2.0)]
    async with pipeline_to(simulator.url, real_time=True, limits=free_limits, max_inputs=4) as pipeline:
        running = [pipeline.run(job(n, f"text {n}")) for n in range(5)]
        ends: list[Any] = await asyncio.gather(*running, return_exceptions=True)
    assert ends[0].ok
    assert [(type(end), end.until_s, end.gap_s) for end in ends[1:]] == [(Parked, 9e9, 0.5)] * 4


async def test_the_highest_priority_of_the_jobs_is_the_calls(
    pipeline_to: Any, simulator: Any, free_limits: Any
) -> None:
    priorities = ["normal", "bulk", "normal", "interactive", "bulk"]
    async with pipeline_to(simulator.url, real_time=True, limits=free_limits) as pipeline:
        await asyncio.gather(*(pipeline.run(job(n, f"text {n}", priority=each)) for n, each in enumerate(priorities)))
    assert [asked["priority"] for asked in free_limits.asked] == ["normal", "interactive"]


async def test_a_provider_that_refuses_base64_is_asked_for_numbers(
    pipeline_to: Any, raw_server: Any, reply: Any
) -> None:
    refusal = {"error": {"message": "Unknown field encoding_format", "type": "invalid_request_error"}}
    row = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    answer = {"object": "list", "data": [row], "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    replies = [reply(400, json.dumps(refusal).encode()), *[reply(200, json.dumps(answer).encode())] * 2]
    server = await raw_server(*replies)
    async with pipeline_to(server.url, real_time=True) as pipeline:
        results = [await pipeline.run(job(n, "text")) for n in range(2)]
    assert [result.response["data"] for result in results] == [[row], [row]]
    sent = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    assert ["encoding_format" in body for body in sent] == [True, False, False]


async def test_who_does_not_read_base64_gets_numbers(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        result = await pipeline.run(job(1, "text", vectors=None))
    assert isinstance(result.response["data"][0]["embedding"][0], float)


async def test_a_fault_of_ours_ends_the_jobs_not_the_worker(pipeline_to: Any, simulator: Any, free_limits: Any) -> None:
    free_limits.raises = [None, RuntimeError("ours"), None]
    async with pipeline_to(simulator.url, real_time=True, limits=free_limits) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, f"text {n}")) for n in range(4)))
        assert [result.ok for result in results] == [True, False, False, False]
        assert {result.error.code for result in results[1:]} == {"internal"}
        assert (await pipeline.run(job(9, "again"))).ok


async def test_a_missing_key_meets_each_job(pipeline_to: Any, simulator: Any, free_limits: Any) -> None:
    free_limits.raises = [None, Failure("auth", "no key")]
    async with pipeline_to(simulator.url, real_time=True, limits=free_limits) as pipeline:
        results = await asyncio.gather(*(pipeline.run(job(n, f"text {n}")) for n in range(4)))
    assert [result.ok for result in results] == [True, False, False, False]
    assert {(result.error.code, result.attempts) for result in results[1:]} == {("auth", 0)}


async def trickle(pipeline: Any, count: int, **options: Any) -> None:
    """A job each 10 ms."""
    running = []
    for n in range(count):
        running.append(asyncio.create_task(pipeline.run(job(n, f"text {n}", **options))))
        await asyncio.sleep(0.01)
    assert all(result.ok for result in await asyncio.gather(*running))


@pytest.mark.parametrize(
    ("places", "options", "fills"),
    [
        ((100, 100, 0), {}, True),
        ((60, 1_000, 50), {}, True),
        ((20, 100, 0), {}, False),
        ((100, 100, 0), {"priority": "interactive"}, False),
    ],
    ids=["taken", "not started", "free", "interactive"],
)
async def test_a_call_of_a_busy_worker_waits_until_it_is_full(
    pipeline_to: Any, simulator: Any, places: Any, options: Any, fills: bool
) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_inputs=20, places=lambda: places) as pipeline:
        await trickle(pipeline, 61, **options)
    sizes = [call["inputs"] for call in await calls_of(simulator)]
    assert (max(sizes) == 20) is fills
    assert (len(sizes) <= 10) is fills


async def test_now_and_then_a_text_does_not_wait_in_a_busy_worker(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, places=lambda: (100, 100, 0)) as pipeline:
        with Stopwatch() as watch:
            await trickle(pipeline, 5)
            assert watch.elapsed_s < 0.5


@pytest.mark.covers("setting", "packing.wait_s")
async def test_how_long_a_call_waits_can_be_set(
    pipeline_to: Any, simulate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTMILL_PACKING__WAIT_S", "1")
    simulator = await simulate(embedding_dimensions=DIMENSIONS, latency_ms=1_500)
    wait_s = Settings().packing.wait_s
    async with pipeline_to(simulator.url, real_time=True, pack_wait_s=wait_s) as pipeline:
        await trickle(pipeline, 20)
    assert [call["inputs"] for call in await calls_of(simulator)] == [1, 19]


@pytest.mark.covers("catalog", "providers.vectors")
@pytest.mark.parametrize(("vectors_as", "is_packed"), [("base64", True), ("float", False)])
async def test_a_providers_vectors_can_be_asked_for_as_numbers(
    pipeline_to: Any, simulator: Any, vectors_as: str, is_packed: bool
) -> None:
    async with pipeline_to(simulator.url, real_time=True, provider={"vectors": vectors_as}) as pipeline:
        result = await pipeline.run(job(1, "text"))
    assert isinstance(result.response["data"][0]["embedding"], str) is is_packed


@pytest.mark.covers("option", "vectors")
async def test_a_reader_of_packed_vectors_says_so(pipeline_to: Any, simulator: Any) -> None:
    message = {"body": {"model": "e", "input": "text"}, "promptmill": {"vectors": "base64"}}
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        result = await pipeline.handle("embed", "job-1", [json.dumps(message)], {})
    assert isinstance(result.response["data"][0]["embedding"], str)
    assert result.response[MARK] == "base64"
    read = read_outcome("job-1", json.dumps({"status": "SUCCESS", "result": result.to_dict()}))
    assert read is not None and read.response is not None and MARK not in read.response
    assert [row["embedding"] for row in read.response["data"]] == expected(["text"])
