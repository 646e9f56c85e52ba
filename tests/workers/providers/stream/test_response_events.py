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
