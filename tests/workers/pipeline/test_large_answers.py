"""Answers of many inputs: as large as they come, up to what Redis can deliver to who waits for the result."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tasks.wire.vectors import packed
from workers.pipeline import record_limit as record_size
from workers.pipeline.record_limit import MOST_BYTES
from workers.prompt.job import PromptJob

VECTOR = "[" + ",".join(f"{random.Random(n).uniform(-0.1, 0.1):.9f}" for n in range(1_536)) + "]"
"""About 20 KB, as of text-embedding-3-small."""


def embeddings(count: int, vector: str = VECTOR) -> bytes:
    rows = ",".join(f'{{"object":"embedding","index":{index},"embedding":{vector}}}' for index in range(count))
    return f'{{"data":[{rows}],"usage":{{"prompt_tokens":{count}}}}}'.encode()


def inputs(count: int, *, is_clients: bool = True, **body: Any) -> PromptJob:
    body = {"model": "e", "input": ["x"] * count, **body}
    return PromptJob("job-e", "embed", "e", body, is_clients=is_clients)


async def test_a_thousand_inputs_are_answered(pipeline_to: Any, raw_server: Any, reply: Any) -> None:
    answer = embeddings(1_000)
    assert len(answer) > 16 * 1024 * 1024, "more than what is read of an answer to one input"
    server = await raw_server(reply(200, answer))
    async with pipeline_to(server.url, real_time=True) as pipeline:
        result = await pipeline.run(inputs(1_000))
    assert (result.status, len(result.response["data"])) == ("succeeded", 1_000)


async def test_an_answer_to_one_input_keeps_its_cap(pipeline_to: Any, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, embeddings(1, f"[{'0.1,' * 5_000_000}0.1]")))
    async with pipeline_to(server.url, real_time=True) as pipeline:
        result = await pipeline.run(inputs(1))
    assert (result.error.code, result.attempts) == ("too_large", 1)
    assert [attempt.suspected_payment for attempt in result.failed_attempts] == [True]


async def test_several_chat_answers_may_be_larger_than_one(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    choice = {"message": {"role": "assistant", "content": "x" * 1_000}}
    server = await raw_server(reply(200, json.dumps({"choices": [choice] * 20}).encode()))
    async with pipeline_to(server.url, http={"max_response_bytes": 10_000}) as pipeline:
        assert (await pipeline.run(chat_job(body={"n": 20}))).ok
        assert (await pipeline.run(chat_job())).error.code == "too_large"


@pytest.mark.parametrize(
    ("job", "fits"),
    [
        (inputs(5_000), "3,255"),
        (inputs(2_000, is_clients=False), "1,627"),
        (inputs(2_048, dimensions=3_072), "1,627"),
        (inputs(9_000, encoding_format="base64"), "3,527"),
    ],
    ids=["of our client, compressed", "of another producer", "of more dimensions", "packed"],
)
async def test_what_could_not_be_delivered_is_refused_before_the_call(
    pipeline_to: Any, raw_server: Any, job: PromptJob, fits: str
) -> None:
    server = await raw_server()
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(job)
    assert (result.status, result.error.code, result.attempts) == ("failed", "too_large", 0)
    assert f"send at most {fits} inputs" in result.error.message
    assert server.requests == []


async def test_what_a_models_vectors_take_is_learned(
    pipeline_to: Any, raw_server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_size, "MOST_BYTES", 2_500_000)
    wide = "[" + ",".join(["0.123456789012345678"] * 1_536) + "]"
    server = await raw_server(reply(200, embeddings(120, wide)))
    async with pipeline_to(server.url, real_time=True) as pipeline:
        assert (await pipeline.run(inputs(120))).ok
        result = await pipeline.run(inputs(200))
    assert (result.error.code, result.attempts, len(server.requests)) == ("too_large", 0, 1)


async def test_an_answer_that_could_not_be_delivered_is_a_named_error(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    """Whether it can be, shows when it is compressed: text does, noise does not."""

    async def ask(content: str) -> Any:
        server = await raw_server(reply(200, json.dumps({"choices": [{"message": {"content": content}}]}).encode()))
        async with pipeline_to(server.url, http={"max_response_bytes": 40_000_000}, real_time=True) as pipeline:
            job = chat_job()
            job.is_clients = True
            return await pipeline.run(job)

    noise = random.Random(1).randbytes(MOST_BYTES // 2).hex()
    assert (await ask("text " * (MOST_BYTES // 6))).ok
    result = await ask(noise)
    assert (result.error.code, result.response) == ("too_large", None)
    assert "Redis delivers 33 MB" in result.error.message


async def test_what_is_stored_as_it_is_counts_as_it_is(
    pipeline_to: Any, raw_server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base64 would shrink to 0.76, and the result backend leaves what shrinks so little as it is."""
    monkeypatch.setattr(record_size, "MOST_BYTES", 2_700_000)
    rng = random.Random(1)
    rows = [{"index": n, "embedding": packed(rng.gauss(0, 0.02) for _ in range(3_072))} for n in range(200)]
    server = await raw_server(reply(200, json.dumps({"data": rows, "usage": {"prompt_tokens": 200}}).encode()))
    async with pipeline_to(server.url, real_time=True) as pipeline:
        result = await pipeline.run(inputs(200, encoding_format="base64"))
    assert (result.error.code, result.attempts) == ("too_large", 1)


async def test_a_key_in_an_answer_is_struck_out(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any, key: str
) -> None:
    answer = {"choices": [{"message": {"content": f"your key is {key}"}}], "debug": {"auth": f"Bearer {key}"}}
    server = await raw_server(reply(200, json.dumps(answer).encode()))
    async with pipeline_to(server.url) as pipeline:
        result = await pipeline.run(chat_job())
    assert result.text == "your key is [key]"
    assert key not in json.dumps(result.to_dict())


async def test_a_key_that_is_a_word_is_left_in_answers(
    pipeline_to: Any, chat_job: Any, raw_server: Any, reply: Any
) -> None:
    from pydantic import SecretStr

    from workers.providers.keyring import KeyRing

    server = await raw_server(reply(200, json.dumps({"choices": [{"message": {"content": "none of it"}}]}).encode()))
    async with pipeline_to(server.url, keys=KeyRing({"p": [SecretStr("none")]})) as pipeline:
        assert (await pipeline.run(chat_job())).text == "none of it"
