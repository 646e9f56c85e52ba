"""Inputs that are longer than the model takes: refused before the call, cut, or split."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.pipeline.packing.too_long import fitted, merged, place_in_job

from .test_packing import DIMENSIONS, calls_of, expected, job, vectors

LONG = "a long text of many words " * 40
"""About 260 tokens."""


@pytest.fixture
async def simulator(simulate: Any) -> Any:
    return await simulate(embedding_dimensions=DIMENSIONS, max_tokens_per_input=100)


@pytest.mark.covers("catalog", "models.max_tokens_per_input")
async def test_an_input_that_is_too_long_is_refused_unsent(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=100) as pipeline:
        result = await pipeline.run(job(1, ["short", LONG]))
        counted = await pipeline.run(job(2, [[1] * 101]))
    assert (result.error.code, result.attempts) == ("too_large", 0)
    assert "input 1 of the job (counted from 0) has about 260 tokens, and the model takes 100" in result.error.message
    assert "has 101 tokens" in counted.error.message
    assert await calls_of(simulator) == []


@pytest.mark.covers("option", "too_long")
async def test_a_long_input_is_truncated_and_it_is_said(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=100) as pipeline:
        result = await pipeline.run(job(1, ["short", LONG], too_long="truncate"))
    [note] = result.too_long
    assert (note["input"], note["how"], note["of"]) == (1, "truncated", len(LONG))
    assert vectors(result) == expected(["short", LONG[: note["kept"]]])
    assert LONG[note["kept"] - 1] == " "


async def test_a_long_input_is_split_into_one_vector(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=100) as pipeline:
        result = await pipeline.run(job(1, [LONG, "short"], too_long="split"))
    assert result.too_long == [{"input": 0, "how": "split", "parts": 3}]
    mean, short = vectors(result)
    assert [short] == expected(["short"])
    assert len(mean) == DIMENSIONS and math.hypot(*mean) == pytest.approx(1, abs=1e-6)
    assert mean not in expected([LONG])


@pytest.mark.parametrize("place", range(4))
async def test_a_poison_part_is_named_by_its_input(pipeline_to: Any, simulate: Any, place: int) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, max_tokens_per_input=100, poison="POISON")
    inputs = ["short", LONG, "short too", LONG]
    inputs[place] += "POISON"
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=100) as pipeline:
        result = await pipeline.run(job(1, inputs, too_long="split"))
    assert result.error.code == "bad_request"
    assert f"it is input {place} of the job, counted from 0" in result.error.message


async def test_token_ids_are_cut_exactly(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=100) as pipeline:
        result = await pipeline.run(job(1, [[7] * 250], too_long="truncate"))
    assert vectors(result) == expected([[7] * 100])


async def test_an_estimate_that_was_too_low_is_corrected(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(embedding_dimensions=DIMENSIONS, max_tokens_per_input=60)
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=100) as pipeline:
        result = await pipeline.run(job(1, LONG, too_long="truncate"))
    assert result.ok and result.too_long[0]["kept"] <= 240
    assert [call["status"] for call in await calls_of(simulator)] == [400, 400, 200]


async def test_a_policy_without_a_length_is_refused(pipeline_to: Any, simulator: Any) -> None:
    async with pipeline_to(simulator.url, real_time=True) as pipeline:
        result = await pipeline.run(job(1, LONG, too_long="split"))
    assert result.error.code == "bad_request" and "max_tokens_per_input" in result.error.message


@given(st.text(min_size=1, max_size=300), st.integers(1, 40), st.booleans())
def test_parts_lose_nothing_and_fit(text: str, length: int, split: bool) -> None:
    sent = fitted([text], [length], split=split)
    assert all(0 < len(piece) <= length for piece in sent.inputs)
    assert "".join(sent.inputs) == (text if split or len(text) <= length else text[: len(sent.inputs[0])])
    assert bool(sent.notes) == (len(text) > length)


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=8), st.integers(1, 40), st.booleans())
def test_each_part_knows_its_input(texts: list[str], length: int, split: bool) -> None:
    sent = fitted(texts, [length] * len(texts), split=split)
    places = [place for place, count in enumerate(sent.parts) for _ in range(count)]
    assert [place_in_job(at, sent.notes) for at in range(len(sent.inputs))] == places


def test_a_cut_keeps_characters_whole() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert fitted(["ab" + family], [4], split=False).inputs == ["ab"]
    assert fitted(["xxxe\u0301"], [4], split=False).inputs == ["xxx"]


def test_the_mean_is_by_length() -> None:
    rows: list[dict[str, Any]] = [{"index": 0, "embedding": [3.0, 0.0]}, {"index": 1, "embedding": [0.0, 3.0]}]
    assert merged(rows, ["xxx", "x"], [2]) == [{"index": 0, "embedding": [2.25, 0.75]}]
    unit: list[dict[str, Any]] = [{"index": 0, "embedding": [1.0, 0.0]}, {"index": 1, "embedding": [0.0, 1.0]}]
    [mean] = merged(unit, ["x", "x"], [2])
    assert mean["embedding"] == pytest.approx([math.sqrt(0.5)] * 2)
