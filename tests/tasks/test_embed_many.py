"""Any number of texts as one group, through Redis and in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tasks import InvalidJob, PromptQueue
from tasks.testing import InMemoryQueue
from tests.support.redis_server import RedisServer

from .harness import FakeWorker

TEXTS = [f"text {n}" for n in range(510)]


def answer(body: dict[str, Any]) -> dict[str, Any]:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    return {"data": [{"index": n, "embedding": [float(len(text))]} for n, text in enumerate(inputs)]}


@pytest.fixture(params=["redis", "memory"])
def queue(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[PromptQueue]:
    if request.param == "memory":
        yield InMemoryQueue(answer)
        return
    with FakeWorker(redis_server.url, answer):
        queue = PromptQueue(redis_server.url)
        yield queue
        queue.sync.close()


async def arriving() -> AsyncIterator[str]:
    for text in TEXTS:
        yield text


@pytest.mark.parametrize("texts", [lambda: TEXTS, lambda: iter(TEXTS), arriving], ids=["list", "iterator", "async"])
async def test_each_text_is_a_job_that_tells_its_index(queue: PromptQueue, texts: Any) -> None:
    async with queue:
        group = await queue.embed_many(texts(), model="e", tenant="acme")
        found = {}
        async for result in group.as_completed():
            assert result.ok and result.response is not None
            found[result.metadata["index"]] = result.response["data"][0]["embedding"]
        assert (await group.progress()).total == len(TEXTS)
    assert found == {n: [float(len(text))] for n, text in enumerate(TEXTS)}


async def test_several_texts_are_one_job(queue: PromptQueue) -> None:
    async with queue:
        group = await queue.embed_many(arriving(), model="e", texts_per_job=250, metadata={"run": 7})
        results = [result async for result in group.as_completed()]
    assert sorted((each.metadata["index"], each.metadata["run"]) for each in results) == [(0, 7), (250, 7), (500, 7)]
    assert sorted(len(each.response["data"]) for each in results if each.response is not None) == [10, 250, 250]


def test_the_blocking_queue_reads_texts_in_the_callers_thread(queue: PromptQueue) -> None:
    group = queue.sync.embed_many(iter(TEXTS[:10]), model="e")
    assert sorted(result.metadata["index"] for result in group.as_completed()) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"texts": "one text"}, "texts: must be texts"),
        ({"texts_per_job": 0}, "texts_per_job: must be a whole number"),
        ({"id": "mine"}, "id: each of the jobs has its own"),
        ({"metadata": [1]}, "metadata: must be an object here"),
    ],
)
async def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], said: str) -> None:
    async with InMemoryQueue() as queue:
        with pytest.raises(InvalidJob, match=said):
            await queue.embed_many(**{"texts": TEXTS, "model": "e", **arguments})


async def test_vectors_in_memory_are_by_text_or_the_tests_own() -> None:
    async with InMemoryQueue() as queue:
        same = [await (await queue.submit(model="e", input=text)).result() for text in ("a", "a", "b")]
    vectors = [json.dumps((result.response or {})["data"][0]["embedding"]) for result in same]
    assert vectors[0] == vectors[1] != vectors[2]
    assert queue.submitted[0]["promptmill"].keys() == {"submitted_at"}
    async with InMemoryQueue(lambda body: [[0.5, 0.5]]) as queue:
        result = await (await queue.submit(model="e", input="a")).result()
    assert (result.response or {})["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}]


async def test_too_long_is_for_embeddings() -> None:
    async with InMemoryQueue() as queue:
        await queue.submit(model="e", input="a", too_long="truncate")
        with pytest.raises(InvalidJob, match="too_long: is for embeddings"):
            await queue.submit(model="m", messages=[{"role": "user", "content": "x"}], too_long="split")
