"""Which jobs are answered from memory before they have a place, and that they come back as the pipeline would say."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from tests.workers.answers.fleet import answers_of
from workers.pipeline.at_hand import AtHand
from workers.pipeline.pipeline import Pipeline

MESSAGES = [{"role": "user", "content": "How many?"}]


def text(*, body: dict[str, Any] | None = None, **options: Any) -> list[str]:
    """The argument of our client's messages."""
    options = {"cache_ttl_s": 60, **options}
    return [json.dumps({"body": {"model": "m", "messages": MESSAGES, **(body or {})}, "promptmill": options})]


@pytest.fixture
async def provider(simulate: Any) -> Any:
    return await simulate()


@pytest.fixture
async def pipeline(server: RedisServer, client: Any, provider: Any, pipeline_to: Any) -> AsyncIterator[Pipeline]:
    """One that has answered `text()`."""
    async with (
        Redis.from_url(server.url) as redis,
        answers_of(redis) as answers,
        pipeline_to(provider.url, answers=answers, real_time=True) as pipeline,
    ):
        await pipeline.handle("chat", "first", text(), {})
        at_hand: Any = pipeline.at_hand
        await wait_until_async(lambda: at_hand.read("chat", "a", text(), group=None).data, "it is in memory")
        yield pipeline


@pytest.fixture
def at_hand(pipeline: Pipeline) -> AtHand:
    assert pipeline.at_hand is not None
    return pipeline.at_hand


async def stored(at_hand: AtHand, **options: Any) -> Any:
    return at_hand.read("chat", "second", text(**options), group="a-group")


async def test_an_answer_is_what_the_pipeline_says(at_hand: AtHand, pipeline: Pipeline, provider: Any) -> None:
    options: dict[str, Any] = {"metadata": {"row": 7}, "deadline_s": 60}
    read = await stored(at_hand, **options)
    usual = await pipeline.handle("chat", "second", text(**options), {}, group="a-group")
    assert usual.cached
    answer = at_hand.answer(read)
    assert replace(answer, duration_s=0, queued_s=0) == replace(usual, duration_s=0, queued_s=0)
    assert provider.stats()["calls"] == 1


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"cache_ttl_s": 0}, {}),
        ({"fallbacks": ["m"]}, {}),
        ({"submitted_at": time.time() - 100, "deadline_s": 1}, {}),
        ({"tenant": 7}, {}),
        ({}, {"model": "unknown"}),
    ],
    ids=["without the cache", "with fallbacks", "late", "refused", "of an unknown model"],
)
async def test_others_go_the_usual_way(at_hand: AtHand, options: dict[str, Any], body: dict[str, Any]) -> None:
    assert await stored(at_hand, body=body, **options) is None


@pytest.mark.parametrize(
    "options", [{"tenant": "acme"}, {"sample": 1}, {"body": {"temperature": 1}}], ids=["tenant", "sample", "body"]
)
async def test_what_differs_has_no_answer(at_hand: AtHand, options: dict[str, Any]) -> None:
    read = await stored(at_hand, **options)
    assert read.data is None
    with pytest.raises(ValueError, match="to be run"):
        at_hand.answer(read)


async def test_a_job_that_was_read_is_not_read_again(
    at_hand: AtHand, pipeline: Pipeline, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = await stored(at_hand, sample=1)
    monkeypatch.setattr("workers.pipeline.pipeline.parse", None)
    monkeypatch.setattr("workers.answers.digest._canonical", None)
    result = await pipeline.handle("chat", "second", [], {}, read=read)
    assert result.ok and not result.cached
    assert provider.stats()["calls"] == 2
