"""How a schema travels, and how far a further question lets the prompt grow."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tasks.wire.schema import response_format
from workers.providers.size import measure
from workers.schema.form import asked_again, in_mode, limit_of, with_limit

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), "response_format": response_format(SCHEMA), **fields}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@given(st.text(max_size=2_000), st.text(min_size=1, max_size=300))
def test_a_further_question_is_short(prompt: str, error: str) -> None:
    asked = body(user(prompt))
    length = measure([asked["messages"], asked["response_format"]])[0]
    again = asked_again(asked, error)
    added = len(again["messages"][0]["content"]) - len(prompt)
    assert 0 < added <= max(0.3 * length, 32)
    assert asked == body(user(prompt)), "the job's own body stays as it was"


def test_a_long_prompt_hears_the_whole_error() -> None:
    again = asked_again(body(user("x" * 1_000)), "properties/a: wrong")
    assert "properties/a: wrong. Answer again" in again["messages"][0]["content"]


def test_the_question_stands_in_the_users_last_turn() -> None:
    [message] = asked_again(body(user([{"type": "text", "text": "x" * 500}])), "wrong")["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "text"]
    *_, last = asked_again(body(user("x" * 500), {"role": "assistant", "content": "{"}), "wrong")["messages"]
    assert last["role"] == "user" and last["content"].startswith("The last answer was not valid")


def test_a_schema_in_words_joins_the_system_message() -> None:
    told = in_mode(body({"role": "system", "content": "Be kind."}, user("Hi")), "none")
    system, _ = told["messages"]
    assert system["content"].startswith("Be kind.\n\n") and '"properties"' in system["content"]
    assert "response_format" not in told
    assert in_mode(body(user("Hi")), "json_schema") == body(user("Hi"))


def test_a_limit_keeps_its_name() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        asked = body(user("Hi"), **{name: 10})
        assert limit_of(asked) == 10 and with_limit(asked, 40)[name] == 40
    assert limit_of(body(user("Hi"))) is None
