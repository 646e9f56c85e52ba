"""A text completion that comes in chunks reads as what would have come as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.prompt.failure import Failure
from workers.providers import CODECS

from ..test_endpoints import job_of, read
from .test_assemblies import HEAD, TEXTS, USAGE, chunked, sse
from .test_assemblies import put_together as _put_together

TOKENS = st.lists(st.tuples(TEXTS, st.floats(-9, 0)), max_size=3)


def put_together(body: bytes, *cuts: int, count: int = 1) -> tuple[Any, str]:
    return _put_together("openai", body, *cuts, job=job_of("complete", n=count))


def logprobs_of(tokens: list[tuple[str, float]]) -> dict[str, Any]:
    return {"tokens": [token for token, _ in tokens], "token_logprobs": [value for _, value in tokens]}


def chunk(index: int = 0, text: str = "", finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
    return {**HEAD, "object": "text_completion", "choices": [choice], "usage": None}


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    choices = []
    for index in range(draw(st.integers(1, 3))):
        tokens = draw(TOKENS)
        logprobs = logprobs_of(tokens) if tokens else None
        choices.append({"index": index, "text": draw(TEXTS), "logprobs": logprobs, "finish_reason": "stop"})
    return {**HEAD, "object": "text_completion", "choices": choices, "usage": USAGE}


def chunks_of(completion: dict[str, Any], sizes: list[int]) -> bytes:
    """As OpenAI streams it."""
    chunks = []
    for choice in completion["choices"]:
        index, logprobs = choice["index"], choice["logprobs"] or {"tokens": [], "token_logprobs": []}
        chunks += [chunk(index, piece) for piece in chunked(choice["text"], sizes)]
        for token in zip(*logprobs.values(), strict=True):
            chunks.append(chunk(index, logprobs=logprobs_of([token])))
        chunks.append(chunk(index, finish=choice["finish_reason"]))
    usage = {**HEAD, "object": "text_completion", "choices": [], "usage": completion["usage"]}
    return sse(*chunks, usage, b"[DONE]")


@given(completions(), st.lists(st.integers(1, 5)), st.lists(st.integers(0, 3_000), max_size=8))
def test_text_chunks_read_as_the_whole(completion: dict[str, Any], sizes: list[int], cuts: list[int]) -> None:
    count = len(completion["choices"])
    assembly, text = put_together(chunks_of(completion, sizes), *cuts, count=count)
    assert assembly.is_done
    assert assembly.whole() == completion
    assert read(job_of("complete", n=count), assembly.whole()).text == text == completion["choices"][0]["text"]


def test_text_chunks_cut_at_every_byte() -> None:
    texts = ["Zwölf 😀 Clips", "x"]
    choices = [{"index": n, "text": text, "logprobs": None, "finish_reason": "length"} for n, text in enumerate(texts)]
    completion = {**HEAD, "object": "text_completion", "choices": choices, "usage": USAGE}
    body = chunks_of(completion, [3, 2, 4])
    for cut in range(len(body)):
        assembly, text = put_together(body, cut, count=2)
        assert (assembly.whole(), text) == (completion, texts[0]), cut


def test_without_done_each_choice_has_to_end() -> None:
    first, second = (sse(chunk(n, "24"), chunk(n, finish="stop")) for n in range(2))
    assert not put_together(first, count=2)[0].is_whole, "the second choice is missing"
    assert not put_together(first + sse(chunk(1, "24")), count=2)[0].is_whole
    assert put_together(first + second, count=2)[0].is_whole


def test_an_error_among_text_chunks_is_that_error() -> None:
    error = {"error": {"message": "overloaded", "type": "server_error", "code": 503}}
    assembly, told = put_together(sse(chunk(text="24"), error))
    assert (told, assembly.is_done, assembly.has_begun) == ("24", True, True)
    with pytest.raises(Failure):
        read(job_of("complete"), assembly.whole())


def test_what_text_chunks_hold_is_counted() -> None:
    assembly = CODECS["openai"].assembly(job_of("complete"))
    for _ in range(100):
        assembly.add(b"", sse(chunk(text="x" * 100)).removeprefix(b"data: ").strip())
    assert 10_000 <= assembly.size < 12_000
