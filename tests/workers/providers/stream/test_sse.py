"""Server-sent events, by the book, wherever the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers.stream.sse import EventStream, is_event_stream

BY_THE_BOOK = [
    pytest.param(b"data: a\n\n", [(b"", b"a")], id="LF"),
    pytest.param(b"data: a\r\n\r\n", [(b"", b"a")], id="CRLF"),
    pytest.param(b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")], id="CR"),
    pytest.param(b"data: a\r\n\ndata: b\n\r\n", [(b"", b"a"), (b"", b"b")], id="mixed line ends"),
    pytest.param(b"data:a\n\n", [(b"", b"a")], id="no space after the colon"),
    pytest.param(b"data:  a\n\n", [(b"", b" a")], id="one space is taken, not two"),
    pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="several data lines"),
    pytest.param(b"data: a\r\ndata: b\r\n\r\n", [(b"", b"a\nb")], id="several data lines, CRLF"),
    pytest.param(b"data\n\n", [(b"", b"")], id="a field without a colon is empty"),
    pytest.param(b": ping\n\ndata: a\n\n", [(b"", b"a")], id="a comment is no event"),
    pytest.param(b": ping\ndata: a\n: pong\n\n", [(b"", b"a")], id="comments within an event"),
    pytest.param(b"event: error\ndata: {}\n\n", [(b"error", b"{}")], id="a name"),
    pytest.param(b"event: ping\n\ndata: a\n\n", [(b"", b"a")], id="a name without data is no event"),
    pytest.param(b"id: 7\nretry: 5\nfoo: x\ndata: a\n\n", [(b"", b"a")], id="other fields"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")], id="a byte order mark"),
    pytest.param(b"\n\n\n\ndata: a\n\n\n\n", [(b"", b"a")], id="more blank lines"),
    pytest.param(b"data: a\n\ndata: [DONE]", [(b"", b"a"), (b"", b"[DONE]")], id="no blank line at the end"),
    pytest.param(b"data: \xc3\xa9\xf0\x9f\x98\x80\n\n", [(b"", "é😀".encode())], id="characters of several bytes"),
    pytest.param(b"data: a:b: c\n\n", [(b"", b"a:b: c")], id="colons in the data"),
]


def events(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    stream = EventStream()
    found = [event for piece in pieces for event in stream.feed(piece)]
    return [*found, *stream.close()]


@pytest.mark.parametrize(("body", "expected"), BY_THE_BOOK)
def test_events_are_read_by_the_book(body: bytes, expected: object) -> None:
    assert events(body) == expected


@pytest.mark.parametrize(("body", "expected"), BY_THE_BOOK)
def test_a_cut_at_any_byte_changes_nothing(body: bytes, expected: object) -> None:
    for cut in range(len(body) + 1):
        assert events(body[:cut], body[cut:]) == expected, cut
    assert events(*(body[at : at + 1] for at in range(len(body)))) == expected
    assert events(*(piece for at in range(len(body)) for piece in (body[at : at + 1], b""))) == expected


@given(
    st.lists(
        st.sampled_from(
            [b"data: x", b"data:y", b": c", b"event: e", b"data", b"", b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf"]
        )
    ).map(b"".join),
    st.lists(st.integers(0, 60)),
)
def test_any_cuts_of_any_lines_change_nothing(body: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert events(*(body[a:b] for a, b in pairwise(places))) == events(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'data: {"a":1}\n\n', True),
        (b": ping\n\n", True),
        (b"\xef\xbb\xbfevent: x", True),
        (b"\n\ndata: x", True),
        (b'{"choices": []}', False),
        (b'\n\n {"choices": []}', False),
        (b'[{"error": {}}]', False),
        (b"<html>", False),
        (b"null", False),
        (b"", False),
        (b" \n", False),
    ],
)
def test_what_is_no_event_stream_is_known(body: bytes, expected: bool) -> None:
    assert is_event_stream(body) is expected
