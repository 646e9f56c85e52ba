"""What comes in pieces reads as what would have come as a whole."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import CODECS, RawResponse
from workers.providers.stream.sse import EventStream

JOB = PromptJob("job-1", "chat", "m", {"model": "m", "messages": [{"role": "user", "content": "Hi"}]})

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def sse(*events: Any) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (event if isinstance(event, bytes) else json.dumps(event).encode()) for event in events
    )


def put_together(kind: str, body: bytes, *cuts: int, job: PromptJob = JOB) -> tuple[Any, str]:
    """The assembly, and the text that it told."""
    assembly, stream, texts = CODECS[kind].assembly(job), EventStream(), []
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    events = [event for start, end in pairwise(places) for event in stream.feed(body[start:end])]
    for name, data in [*events, *stream.close()]:
        texts.append(assembly.add(name, data))
    return assembly, "".join(texts)


def read(kind: str, body: dict[str, Any]) -> Any:
    return CODECS[kind].response(JOB, RawResponse(200, {}, json.dumps(body).encode()), now=1_750_000_000.0)


# -- OpenAI

HEAD = {"id": "c-1", "created": 1_750_000_000, "model": "gpt", "system_fingerprint": "fp"}


def calls_of(drawn: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps({"q": said})}}
        for n, (name, said) in enumerate(drawn)
    ]


def chunked(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    for size in [*sizes, len(text)]:
        pieces.append(text[at : at + size])
        at += size
    return [piece for piece in pieces if piece]


def openai_chunks(completion: dict[str, Any], sizes: list[int]) -> bytes:
    """As OpenAI streams it."""
    head = {**HEAD, "object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = []

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunks.append({**head, "choices": [choice], "usage": None, "obfuscation": "x" * len(chunks)})

    for choice in completion["choices"]:
        index, message = choice["index"], choice["message"]
        chunk(index, {"role": "assistant", "content": "" if message["content"] else None, "refusal": None})
        for name in ("reasoning_content", "content", "refusal"):
            for piece in chunked(message.get(name) or "", sizes):
                chunk(index, {name: piece})
        for place, call in enumerate(message.get("tool_calls") or ()):
            begun = {**call, "function": {**call["function"], "arguments": ""}}
            chunk(index, {"tool_calls": [{"index": place, **begun}]})
            for piece in chunked(call["function"]["arguments"], sizes):
                chunk(index, {"tool_calls": [{"index": place, "function": {"arguments": piece}}]})
        if choice["logprobs"]:
            for token in choice["logprobs"]["content"]:
                chunk(index, {}, logprobs={"content": [token], "refusal": None})
        chunk(index, {}, choice["finish_reason"])
    return sse(*chunks, {**head, "choices": [], "usage": completion["usage"]}, b"[DONE]")


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    choices = []
    for index in range(draw(st.integers(1, 3))):
        message: dict[str, Any] = {"role": "assistant", "content": draw(TEXTS | st.none()), "refusal": None}
        if drawn := draw(st.lists(st.tuples(st.sampled_from(["find", "add"]), TEXTS), max_size=2)):
            message["tool_calls"] = calls_of(drawn)
        if not message["content"] and not drawn:
            message["refusal"] = draw(TEXTS)
        if reasoning := draw(TEXTS | st.none()):
            message["reasoning_content"] = reasoning
        tokens = draw(st.lists(st.fixed_dictionaries({"token": TEXTS, "logprob": st.just(-0.5)}), max_size=2))
        logprobs = {"content": tokens, "refusal": None} if tokens else None
        finish = "tool_calls" if drawn else "stop"
        choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    return {**HEAD, "object": "chat.completion", "choices": choices, "usage": USAGE}


@given(completions(), st.lists(st.integers(1, 5)), st.lists(st.integers(0, 3_000), max_size=8))
def test_openais_chunks_read_as_the_whole(completion: dict[str, Any], sizes: list[int], cuts: list[int]) -> None:
    assembly, text = put_together("openai", openai_chunks(completion, sizes), *cuts)
    assert assembly.is_done
    assert assembly.whole() == completion
    assert read("openai", assembly.whole()) == read("openai", completion)
    assert text == (completion["choices"][0]["message"]["content"] or "")


def test_openais_chunks_cut_at_every_byte() -> None:
    message = {
        "role": "assistant",
        "content": "Zwölf 😀 Clips",
        "refusal": None,
        "tool_calls": calls_of([("find", "x")]),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    completion = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}
    body = openai_chunks(completion, [3, 2, 4])
    for cut in range(len(body)):
        assembly, text = put_together("openai", body, cut)
        assert (assembly.whole(), text) == (completion, message["content"]), cut


def delta(**fields: Any) -> dict[str, Any]:
    finish = fields.pop("finish_reason", None)
    return {**HEAD, "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def call(**fields: Any) -> dict[str, Any]:
    return delta(tool_calls=[fields])


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(
            [
                call(id="a", type="function", function={"name": "find", "arguments": '{"q":'}),
                call(function={"arguments": "1}"}),
                call(id="b", type="function", function={"name": "add", "arguments": "{}"}),
            ],
            id="no index at all",
        ),
        pytest.param(
            [
                call(index=0, id="a", type="function", function={"name": "find", "arguments": '{"q":1}'}),
                call(index=0, id="b", type="function", function={"name": "add", "arguments": "{}"}),
            ],
            id="the same index for two calls",
        ),
        pytest.param(
            [
                call(index=0, id="a", type="function", function={"name": "find", "arguments": '{"q":'}),
                call(index=0, id="a", type="function", function={"name": "find", "arguments": "1}"}),
                call(index=1, id="b", type="function", function={"name": "add", "arguments": "{}"}),
            ],
            id="id and name in each piece",
        ),
        pytest.param(
            [
                delta(
                    tool_calls=[
                        {"index": 0, "id": "a", "type": "function", "function": {"name": "find", "arguments": '{"q":'}},
                        {"index": 0, "function": {"arguments": "1}"}},
                        {"index": 1, "id": "b", "type": "function", "function": {"name": "add", "arguments": "{}"}},
                    ]
                )
            ],
            id="several pieces in one chunk",
        ),
        pytest.param(
            [
                call(index=0, id="a", type="function", function={"name": "find", "arguments": None}),
                call(index=0, id="", function={"name": "", "arguments": '{"q":1}'}),
                call(index=1, id="b", type="function", function={"name": "add", "arguments": "{}"}),
            ],
            id="empty strings",
        ),
    ],
)
def test_tool_calls_of_all_dialects(pieces: list[Any]) -> None:
    assembly, _ = put_together("openai", sse(*pieces, delta(finish_reason="tool_calls"), b"[DONE]"))
    found = [
        (each["id"], each["type"], each["function"]) for each in assembly.whole()["choices"][0]["message"]["tool_calls"]
    ]
    assert found == [
        ("a", "function", {"name": "find", "arguments": '{"q":1}'}),
        ("b", "function", {"name": "add", "arguments": "{}"}),
    ]


def test_an_answer_without_done_is_whole_once_it_has_ended() -> None:
    unfinished, _ = put_together("openai", sse(delta(content="24")))
    finished, _ = put_together("openai", sse(delta(content="24"), delta(finish_reason="stop")))
    assert (unfinished.is_whole, finished.is_whole, finished.is_done) == (False, True, False)


def test_text_in_parts_is_told_and_kept() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "24 "}]
    assembly, text = put_together("openai", sse(delta(content=parts), delta(content="clips"), b"[DONE]"))
    assert text == read("openai", assembly.whole()).text == "24 clips"
    assert assembly.whole()["choices"][0]["message"]["content"][0] == parts[0]


@pytest.mark.parametrize(
    "error",
    [
        sse({"error": {"message": "overloaded", "type": "server_error", "code": 503}}),
        b'event: error\ndata: {"message": "overloaded"}\n\n',
        sse({"object": "error", "message": "overloaded", "code": 503}),
    ],
)
def test_an_error_in_mid_stream_is_that_error(error: bytes) -> None:
    assembly, _ = put_together("openai", sse(delta(content="24")) + error)
    assert (assembly.is_done, assembly.has_begun) == (True, True)
    with pytest.raises(Failure):
        read("openai", assembly.whole())


def test_half_of_a_surrogate_pair_does_not_end_the_answer() -> None:
    piece = b'{"choices":[{"index":0,"delta":{"content":"a\\ud83d"},"finish_reason":"stop"}]}'
    assembly, text = put_together("openai", sse(piece, b"[DONE]"))
    assert text == read("openai", assembly.whole()).text == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("data", [b"nonsense", b'{"choices": [', b"[]", b"7"])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_piece_that_is_no_object_is_refused(kind: str, data: bytes) -> None:
    with pytest.raises((ValueError, Failure), match=r"JSON"):
        CODECS[kind].assembly(JOB).add(b"", data)


def test_what_an_answer_holds_is_counted() -> None:
    assembly = CODECS["openai"].assembly(JOB)
    for _ in range(100):
        assembly.add(b"", json.dumps(delta(reasoning_content="x" * 100)).encode())
    assert 10_000 <= assembly.size < 12_000


def test_the_last_word_counts_though_it_was_said_before() -> None:
    """Equal pieces are merged once, but not where another came between, nor what grows with each."""
    logprobs = {"content": [{"token": "x"}]}

    def chunk(tier: str, **fields: Any) -> dict[str, Any]:
        return {**HEAD, "service_tier": tier, "choices": [{"index": 0, "delta": {"content": "x"}, **fields}]}

    pieces = [
        chunk("a", safety=1),
        chunk("a", safety=1),
        chunk("b", safety=2, logprobs=logprobs),
        chunk("b", safety=2, logprobs=logprobs),
        chunk("a", safety=1),
    ]
    assembly, _ = put_together("openai", sse(*pieces))
    whole = assembly.whole()
    choice = whole["choices"][0]
    assert (whole["service_tier"], choice["safety"], choice["message"]["content"]) == ("a", 1, "x" * 5)
    assert choice["logprobs"] == {"content": [{"token": "x"}] * 2}


def test_an_empty_piece_says_nothing_of_the_answer() -> None:
    assembly = CODECS["openai"].assembly(JOB)
    for ping in (delta(role="assistant", content=""), {**HEAD, "choices": []}, {**HEAD, "choices": [], "usage": USAGE}):
        assembly.add(b"", json.dumps(ping).encode())
    assert assembly.heard == 0
    assembly.add(b"", json.dumps(delta(reasoning_content="hm")).encode())
    assert assembly.heard > 0


# -- Anthropic


def anthropic_events(message: dict[str, Any], sizes: list[int]) -> bytes:
    """As the Messages API streams it."""
    events: list[dict[str, Any]] = []
    begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    events.append({"type": "message_start", "message": {**begun, "usage": {**message["usage"], "output_tokens": 1}}})
    for index, block in enumerate(message["content"]):
        empty, deltas = _anthropic_block(block, sizes)
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": each} for each in deltas]
        events += [{"type": "ping"}, {"type": "content_block_stop", "index": index}]
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    counted = {"output_tokens": message["usage"]["output_tokens"]}
    events += [{"type": "message_delta", "delta": stop, "usage": counted}, {"type": "message_stop"}]
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


def _anthropic_block(block: dict[str, Any], sizes: list[int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": p} for p in chunked(block["text"], sizes)]
        case "thinking":
            pieces = [{"type": "thinking_delta", "thinking": p} for p in chunked(block["thinking"], sizes)]
            return {**block, "thinking": "", "signature": ""}, [
                *pieces,
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        case _:
            text = json.dumps(block["input"]) if block["input"] else ""
            pieces = [{"type": "input_json_delta", "partial_json": p} for p in chunked(text, sizes)]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": ""}, *pieces]


BLOCKS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    TEXTS.map(lambda text: {"type": "thinking", "thinking": text, "signature": "sig"}),
    TEXTS.map(lambda text: {"type": "tool_use", "id": "tu_1", "name": "find", "input": {"q": text}}),
    st.just({"type": "tool_use", "id": "tu_2", "name": "now", "input": {}}),
)


@given(
    st.lists(BLOCKS, min_size=1, max_size=4), st.lists(st.integers(1, 5)), st.lists(st.integers(0, 3_000), max_size=8)
)
def test_anthropics_events_read_as_the_whole(blocks: list[Any], sizes: list[int], cuts: list[int]) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [*blocks, {"type": "text", "text": "24"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "cache_read_input_tokens": 2, "output_tokens": 5},
    }
    assembly, text = put_together("anthropic", anthropic_events(message, sizes), *cuts)
    assert assembly.is_done
    assert assembly.whole() == message
    answer = read("anthropic", assembly.whole())
    assert answer == read("anthropic", message)
    assert text == answer.text


def test_anthropics_error_in_mid_stream() -> None:
    body = (
        b'data: {"type":"message_start","message":{"id":"m","content":[]}}\n\n'
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    )
    assembly, _ = put_together("anthropic", body)
    assert (assembly.is_done, assembly.has_begun) == (True, True)
    with pytest.raises(Failure):
        read("anthropic", assembly.whole())


def test_citations_are_kept() -> None:
    events = [
        {"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "", "citations": []}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {"cited": 1}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "24"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    ]
    assembly, _ = put_together("anthropic", sse(*events))
    assert assembly.is_whole
    assert assembly.whole()["content"] == [{"type": "text", "text": "24", "citations": [{"cited": 1}]}]


def test_a_ping_of_anthropics_says_nothing_of_the_answer() -> None:
    assembly = CODECS["anthropic"].assembly(JOB)
    assembly.add(b"ping", b'{"type": "ping"}')
    assert assembly.heard == 0
    assembly.add(b"", b'{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}')
    assert assembly.heard > 0
