"""`InMemoryQueue` with answers that come in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tasks import BadResponse
from tasks.testing import InMemoryQueue

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


def words(body: dict[str, Any]) -> Iterator[str]:
    yield from ("24 ", "clips")


async def words_as_they_come(body: dict[str, Any]) -> AsyncIterator[str]:
    for word in words(body):
        yield word


@pytest.mark.parametrize("answer", [words, words_as_they_come])
async def test_a_generator_is_an_answer_in_pieces(answer: Any) -> None:
    queue = InMemoryQueue(answer)
    job = await queue.submit(**HELLO)
    pieces = [piece async for piece in job.stream()]
    assert ("".join(pieces), (await job.result()).text) == ("24 clips", "24 clips")
    assert [piece async for piece in job.stream(after=3)] == ["clips"]


@pytest.mark.parametrize("given", [{"kind": "respond", "input": "Hello"}, {"kind": "complete", "prompt": "Hello"}])
async def test_other_endpoints_come_in_pieces_too(given: dict[str, Any]) -> None:
    job = await InMemoryQueue(words).submit(model="m", stream=True, **given)
    assert "".join([piece async for piece in job.stream()]) == (await job.result()).text == "24 clips"


async def test_pieces_come_one_by_one() -> None:
    queue = InMemoryQueue(words_as_they_come)
    job = await queue.submit(**HELLO)
    found = job.stream()
    first = await anext(found)
    assert (first, first.number) in {("24 ", 3), ("24 clips", 8)}
    assert first + "".join([piece async for piece in found]) == "24 clips"


async def test_an_answer_that_breaks_off_fails_after_its_text() -> None:
    async def broken(body: dict[str, Any]) -> AsyncIterator[str]:
        yield "24 "
        raise BadResponse("it broke off")

    job = await InMemoryQueue(broken).submit(**HELLO)
    text = ""
    with pytest.raises(BadResponse):
        async for piece in job.stream():
            text += piece
    assert text in {"24 ", ""}
