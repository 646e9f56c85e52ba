"""What one feed says, tick by tick."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers.streams.feeds import Feed

KEY = "sk-canary-4f1d9e77c0"


def feed(*, most_bytes: int = 1_000, key: str = "") -> Feed:
    made = Feed("job-1", most_bytes=most_bytes, note=lambda _: None)
    made.begin(key)
    return made


def said(feed: Feed, **expected: Any) -> None:
    told = feed.take()
    assert {name: told.get(name) for name in expected} == expected


def test_a_call_begins_once_and_its_text_follows() -> None:
    one = feed()
    one.write("24 ")
    said(one, run=0, text="24 ", at=3)
    one.arrived(1)
    one.write("clips")
    said(one, run=1, text="clips", at=8, full=None, digest=None)


def test_what_did_not_arrive_is_said_again_with_what_came_since() -> None:
    one = feed()
    one.write("24 ")
    one.take()
    one.again()
    one.write("clips")
    said(one, run=0, text="24 clips", at=8)
    one.arrived(1)
    one.write("!")
    said(one, run=1, text="!", at=9)


def test_an_earlier_calls_reply_is_none_of_the_next_ones() -> None:
    one = feed()
    one.write("24 ")
    one.take()
    one.begin()
    one.arrived(1)
    one.write("25 ")
    said(one, run=0, text="25 ", at=3)


def test_a_full_stream_ends_with_what_it_has() -> None:
    one = feed(most_bytes=5)
    one.write("24 ")
    said(one, text="24 ", at=3)
    one.arrived(1)
    one.write("clips")
    said(one, text="", at=3, full=1)
    one.arrived(1)
    loop = asyncio.new_event_loop()
    one.end("24 clips", loop.create_future())
    loop.close()
    said(one, run=1, text="", at=3, full=1)


def test_the_end_is_told_when_it_has_arrived_itself() -> None:
    loop = asyncio.new_event_loop()
    one, ended = feed(), loop.create_future()
    one.write("24 ")
    one.take()
    one.end("24 clips", ended)
    one.arrived(1)
    assert not ended.done(), "the reply to what was said before"
    said(one, run=1, text="clips", at=8)
    one.arrived(1)
    assert ended.done()
    loop.close()


def test_another_answer_than_was_told_is_another_run() -> None:
    loop = asyncio.new_event_loop()
    one = feed()
    one.write("24 ")
    one.take()
    one.arrived(1)
    one.end("25 clips", loop.create_future())
    said(one, run=0, text="25 clips", at=8)
    loop.close()


@given(st.text(alphabet="sk-canry4f1d ", max_size=30), st.text(max_size=10), st.lists(st.integers(0, 60), max_size=10))
def test_the_key_is_told_nowhere_however_it_is_cut(before: str, after: str, cuts: list[int]) -> None:
    text = before + KEY + after
    one, told = feed(most_bytes=10_000, key=KEY), ""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        one.write(text[start:end])
        told += one.take()["text"]
        one.arrived(1)
    whole = text.replace(KEY, "[key]")
    assert whole.startswith(told)
    loop = asyncio.new_event_loop()
    one.end(whole, loop.create_future())
    loop.close()
    assert told + one.take()["text"] == whole


@given(st.lists(st.tuples(st.text(max_size=4), st.sampled_from(["arrived", "again", "nothing"])), max_size=12))
def test_whatever_is_lost_the_pieces_overlap_to_the_text(steps: list[tuple[str, str]]) -> None:
    one, told, text = feed(most_bytes=10_000), "", ""
    for piece, becomes in steps:
        one.write(piece)
        text += piece
        if becomes == "nothing":
            continue
        item = one.take()
        start = item["at"] - len(item["text"])
        assert start <= len(told), "no gap"
        told += item["text"][len(told) - start :]  # Redis had it, whatever the worker has heard
        one.arrived(1) if becomes == "arrived" else one.again()
    assert text.startswith(told)
