"""A response that comes in events reads as what would have come as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers import CODECS
from workers.providers.stream.sse import EventStream

from ..test_endpoints import CALL, THOUGHT, job_of, message, read, refused, response, text

KINDS = ["response.completed", "response.output_text.delta", "response.output_item.done", "error"]
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=3) | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def events(*datas: Any) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in datas)


def put_together(body: bytes, step: int) -> tuple[Any, str]:
    assembly, stream = CODECS["openai"].assembly(job_of("respond")), EventStream()
    found = [event for at in range(0, len(body), step) for event in stream.feed(body[at : at + step])]
    return assembly, "".join(assembly.add(name, data) for name, data in [*found, *stream.close()])


def delta(piece: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 1, "delta": piece}


@given(pieces=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), min_size=1, max_size=6))
def test_a_response_in_pieces_reads_as_a_whole_one(pieces: list[str]) -> None:
    whole = response(THOUGHT, message(text("".join(pieces))))
    body = events(
        {"type": "response.created", "response": response(status="in_progress")},
        *map(delta, pieces),
        {"type": "response.completed", "response": whole},
    )
    for step in (1, 7, len(body)):
        assembly, told = put_together(body, step)
        assert assembly.is_done and assembly.is_whole and assembly.has_begun
        assert read(job_of("respond"), assembly.whole()).text == told == "".join(pieces)


def test_items_stand_in_for_an_empty_last_event() -> None:
    items = [
        {"type": "response.output_item.done", "output_index": n, "item": each} for n, each in ((1, CALL), (0, THOUGHT))
    ]
    assembly, _ = put_together(events(*items, {"type": "response.completed", "response": response()}), 64)
    assert assembly.whole()["output"] == [THOUGHT, CALL]


@pytest.mark.parametrize(
    ("event", "says_something"),
    [
        (delta("24"), True),
        ({"type": "response.reasoning_summary_text.delta", "delta": "hm"}, True),
        ({"type": "response.web_search_call.searching", "item_id": "ws_1"}, True),
        (delta(""), False),
        ({"type": "response.in_progress", "response": response(status="in_progress")}, False),
        ({"type": "keepalive", "sequence_number": 7}, False),
    ],
)
def test_a_ping_says_nothing_of_the_answer(event: Any, says_something: bool) -> None:
    assembly, _ = put_together(events(event), 64)
    assert bool(assembly.heard) == says_something


def test_without_its_end_a_response_is_cut() -> None:
    assembly, told = put_together(events(delta("24")) + b"data: [DONE]\n\n", 64)
    assert (told, assembly.is_whole, assembly.is_done) == ("24", False, False)


@pytest.mark.parametrize(
    "last",
    [
        {"type": "error", "code": "server_error", "message": "canary"},
        {"type": "error", "error": {"code": "server_error", "message": "canary"}},
        {"type": "response.failed", "response": response(status="failed", error={"code": "server_error"})},
    ],
)
def test_an_error_in_mid_stream_is_that_error(last: Any) -> None:
    assembly, told = put_together(events(delta("24"), last), 64)
    assert (told, assembly.is_done) == ("24", True)
    assert refused(job_of("respond"), assembly.whole()).code == "server_error"


@given(datas=st.lists(st.dictionaries(st.sampled_from(["type", "response", "item", "delta", "error"]), VALUES)))
def test_whatever_events_come_the_rest_is_read(datas: list[dict[str, Any]]) -> None:
    body = b"".join(b"data: %b\n\n" % json.dumps(data).encode() for data in datas)
    assembly, told = put_together(body, len(body) or 1)
    assert isinstance(told, str) and isinstance(assembly.whole(), dict)
