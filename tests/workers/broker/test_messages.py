"""What is read from a message's text, whatever the bytes are."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.broker.leases import Grave, Lease
from workers.broker.messages import MARKS, Unreadable, context, dead_letter, read

from .broker import message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.promise(15)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        read(raw)
    except Unreadable as refused:
        assert str(refused)


@pytest.mark.promise(15)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("body", "headers", "properties", "promptmill"), JSON)))
def test_any_json_is_read_or_refused(payload: dict[str, Any]) -> None:
    try:
        delivery = read(json.dumps(payload).encode())
    except Unreadable:
        return
    assert delivery.payload["body"] == payload["body"]
    assert delivery.ready("pm-1")["properties"]["delivery_tag"] == "pm-1"


@pytest.mark.parametrize(
    ("eta", "due_ms"),
    [
        (None, None),
        ("2030-01-01T00:00:00+00:00", 1_893_456_000_000),
        ("2030-01-01T00:00:00", 1_893_456_000_000),
        ("2030-01-01T02:00:00.250+02:00", 1_893_456_000_250),
        ("tomorrow", None),
        (7, None),
        ({"__type__": "datetime", "__value__": "2030-01-01T00:00:00+00:00"}, 1_893_456_000_000),
    ],
)
def test_an_eta_is_read_as_celery_writes_it(eta: Any, due_ms: int | None) -> None:
    assert read(message("a", eta=eta)).due_ms == due_ms


def test_a_due_message_hides_its_eta_from_celery_not_the_task() -> None:
    # Celery would ask this machine's clock.
    eta = datetime.now(UTC).isoformat()
    payload = read(message("a", eta=eta)).ready("pm-1")
    assert payload["headers"]["eta"] is None
    assert payload["properties"][MARKS] == {"eta": eta}


def test_a_message_that_comes_again_says_so() -> None:
    raw = message("a")[:-1] + b', "promptmill": {"deliveries": 2, "suspected": 1}}'
    payload = read(raw).ready("pm-1")
    assert payload["headers"]["redelivered"] is True
    assert payload["properties"][MARKS] == {"suspected_double_payment": True}
    assert "redelivered" not in read(message("a")).ready("pm-1")["headers"]


def test_what_a_parked_job_must_not_forget_comes_back_with_it() -> None:
    raw = message("a")[:-1] + b', "promptmill_parked": "eyJhIjogMX0=", "promptmill": {"deliveries": 1, "suspected": 1}}'
    marks = read(raw).ready("pm-1")["properties"][MARKS]
    assert marks == {"suspected_double_payment": True, "memory": '{"a": 1}'}


@pytest.mark.parametrize("text", ["no base64!", 7, None, "/w=="])
def test_a_memory_that_is_none_is_an_empty_one(text: Any) -> None:
    raw = json.dumps({**json.loads(message("a")), "promptmill_parked": text}).encode()
    assert read(raw).memory == ""


def test_nobody_but_us_marks_a_message() -> None:
    forged = json.loads(message("a"))
    forged["properties"][MARKS] = {"suspected_double_payment": True}
    assert read(json.dumps(forged).encode()).ready("pm-1")["properties"][MARKS] == {}


def test_the_reason_never_quotes_the_message() -> None:
    for raw in (
        b"a secret",
        b'["a secret"]',
        b'{"body": "a secret"}',
        b'{"x": {"__type__": "a secret", "__value__": 1}}',
    ):
        with pytest.raises(Unreadable) as refused:
            read(raw)
        assert "secret" not in str(refused.value)


@given(st.binary(max_size=100))
def test_a_dead_letter_keeps_any_message(raw: bytes) -> None:
    letter = json.loads(dead_letter(Grave(Lease("pm-1", "q", raw), "garbage", "why"), 1_500))
    assert (letter["id"], letter["kind"], letter["at"]) == ("pm-1", "garbage", 1.5)


@pytest.mark.parametrize("encoding", ["base64", None])
def test_the_context_of_a_message_is_as_celerys(encoding: str | None) -> None:
    body = '[[], {}, {"chord": {"a": 1}}]'
    sent = json.loads(message("a", body=base64.b64encode(body.encode()).decode() if encoding else body, group="g"))
    sent["properties"]["body_encoding"] = encoding
    made = context(json.dumps(sent).encode())
    assert (made.id, made.group, made.chord) == ("a", "g", {"a": 1})
