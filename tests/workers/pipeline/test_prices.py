"""What a call of a route's target is likely to cost."""

from __future__ import annotations

from typing import Any

import pytest

from workers.limiter import Forecast
from workers.pipeline.routing.prices import GUESSED_OUTPUT_TOKENS, KNOWN_FOR_S, Prices
from workers.pipeline.routing.speeds import Speeds
from workers.prompt.job import PromptJob

from .test_fallbacks import KEYS, catalog, job, price

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MICRO = 1e6


@pytest.fixture
async def ask(pipeline_to: Any, free_limits: Any, clock: Any) -> Any:
    """`ask(JOB)`: micro-dollars of `a`, at 1 and 10 a million tokens, and of `b`, of which no price is known."""
    made = catalog(
        {"a": "http://127.0.0.1:1/v1", "b": "http://127.0.0.1:1/v1"},
        a={"price": price(1, 10)},
        routes={"auto": {"targets": ["a", "b"], "choose": "cheapest"}},
    )
    free_limits.forecast = lambda model: Forecast(1.0, (1_000.0, 500.0, 5_000.0), free_limits.outputs.get("a"))
    async with pipeline_to("", catalog=made, keys=KEYS, limits=free_limits) as pipeline:
        prices = Prices(limits=free_limits, find_route=pipeline._route_of, speeds=Speeds(), now=clock)

        def micro_usd(asked: PromptJob) -> Any:
            a, b = prices.of(made.routes["auto"], asked)
            assert b is None
            return round((a or 0) * MICRO)

        yield micro_usd


def chat(content: Any = "x" * 99, **body: Any) -> PromptJob:
    return job("auto", body={"messages": [{"content": content}], **body})


@pytest.mark.parametrize(
    ("asked", "output"),
    [(chat(), GUESSED_OUTPUT_TOKENS), (chat(max_tokens=7), 7), (chat(n=2), 2 * GUESSED_OUTPUT_TOKENS)],
    ids=["a guess", "bounded", "two answers"],
)
async def test_until_answers_have_come_their_length_is_a_guess(ask: Any, asked: PromptJob, output: int) -> None:
    assert ask(asked) == 100 + 10 * output


async def test_a_picture_takes_what_pictures_take(ask: Any, free_limits: Any) -> None:
    free_limits.outputs = {"a": 3}
    text = {"type": "text", "text": "x" * 95}
    assert ask(chat([text, PICTURE])) - ask(chat([text])) == pytest.approx(1_000, abs=20)


async def test_embeddings_write_nothing(ask: Any) -> None:
    assert ask(PromptJob("e", "embed", "auto", {"model": "auto", "input": "x" * 99})) == 100


async def test_what_changes_is_looked_up_again_soon(ask: Any, free_limits: Any, clock: Any) -> None:
    free_limits.outputs = {"a": 3}
    assert ask(chat()) == 130
    free_limits.outputs = {"a": 4}
    assert ask(chat()) == 130
    await clock.sleep(KNOWN_FOR_S)
    assert ask(chat()) == 140
