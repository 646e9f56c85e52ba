"""What `submit` accepts and refuses, without Redis."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InvalidJob, UnknownModel
from tasks.wire.request import check_id, check_model, check_size, new_job

MESSAGES = [{"role": "user", "content": "Hello"}]
CANARY = "canary-prompt-7f3e"


def job(**arguments: Any) -> Any:
    return new_job(**({"model": "m", "messages": MESSAGES} | arguments))


def nested(levels: int) -> Any:
    value: Any = CANARY
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"model": None}, "model:"),
        ({"model": "  "}, "model:"),
        ({"model": 7}, "model:"),
        ({"messages": None}, "messages, input: neither"),
        ({"input": "text"}, "messages, input: both"),
        ({"messages": []}, "messages:"),
        ({"messages": CANARY}, "messages:"),
        ({"messages": [CANARY]}, "messages[0]:"),
        ({"messages": None, "input": ""}, "input:"),
        ({"messages": None, "input": []}, "input:"),
        ({"messages": None, "input": {"text": CANARY}}, "input:"),
        ({"temperature": math.nan}, "temperature: is NaN"),
        ({"logit_bias": {"5": -math.inf}}, "logit_bias.5: is NaN or infinite"),
        ({"messages": [{"role": "user", "content": CANARY + "\ud800"}]}, "messages[0].content: holds half"),
        ({"user": {CANARY[:3] + "\udfff": 1}}, "a key of user: holds half"),
        ({"metadata": {"deep": [1, {7: CANARY}]}}, "metadata.deep[1]: has a key that is a int"),
        ({"metadata": {"at": datetime.now(UTC)}}, "metadata.at: is a datetime"),
        ({"tools": [{"bytes": CANARY.encode()}]}, "tools[0].bytes: is a bytes"),
        ({"user": {1, 2}}, "user: is a set"),
        ({"user": nested(101)}, "is nested more than 100 levels"),
        ({"seed": 10**5000}, "a number too long"),
        ({"stream": 1}, "stream: must be true or false"),
        ({"messages": None, "input": "Hi", "stream": True}, "stream: an embedding comes whole"),
        ({"extra_body": {"stream": True}}, "stream:"),
        ({"extra_body": CANARY}, "extra_body:"),
        ({"priority": "urgent"}, "priority:"),
        ({"priority": 3}, "priority:"),
        ({"deadline_s": -1}, "deadline_s:"),
        ({"deadline_s": 0}, "deadline_s:"),
        ({"deadline_s": math.nan}, "deadline_s:"),
        ({"deadline_s": True}, "deadline_s:"),
        ({"deadline_s": 10**400}, "deadline_s:"),
        ({"deadline_s": 5, "delay_s": 10}, "deadline_s: counts from submission"),
        ({"delay_s": -0.1}, "delay_s:"),
        ({"delay_s": 1e12}, "delay_s:"),
        ({"cache_ttl_s": -1}, "cache_ttl_s: must be 0 or more seconds"),
        ({"sample": True}, "sample: must be a whole number, 0 or more"),
        ({"max_attempts": 0}, "max_attempts:"),
        ({"max_attempts": 2.5}, "max_attempts:"),
        ({"fallbacks": "gpt-4o"}, "fallbacks: must be a list of models' names"),
        ({"fallbacks": ["a"] * 21}, "fallbacks: must be at most 20 names of 1 to 200 characters"),
        ({"fallbacks": ["a", " "]}, "fallbacks: must be at most 20 names of 1 to 200 characters"),
        ({"fallbacks": ["a", "a"]}, "fallbacks: must not name the same model twice"),
        ({"fallback_on": "auth"}, "fallback_on: must be a list of 'rate_limited', 'content_filter', 'auth' and"),
        ({"tag": "x" * 201}, "tag: must be a text of 1 to 200 characters"),
        ({"repeat_timeouts": "no"}, "repeat_timeouts:"),
        ({"repeat_timeouts": 1}, "repeat_timeouts:"),
        ({"tenant": 5}, "tenant:"),
        ({"tenant": ""}, "tenant:"),
        ({"metadata": {"a": [2**64]}}, "metadata: holds an integer of more than 64 bits"),
        ({"id": ""}, "id:"),
        ({"id": "two words"}, "id:"),
        ({"id": "x" * 201}, "id:"),
        ({"id": 17}, "id:"),
    ],
)
def test_refusals_say_where_and_never_what(arguments: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        job(**arguments)
    assert path in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_circle_is_refused_as_too_deep() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidJob, match="nested more than 100 levels"):
        job(user=circle)


def test_a_job_of_exactly_the_permitted_size_passes() -> None:
    small = job(metadata={"note": "ü"})
    assert check_size(small, small.size_bytes) is small
    with pytest.raises(InvalidJob, match=r"more than the .* permitted"):
        check_size(small, small.size_bytes - 1)


def test_size_counts_bytes_not_characters() -> None:
    assert job(user="한").size_bytes == job(user="a").size_bytes + 2


def test_what_the_provider_gets_is_untouched() -> None:
    body = {
        "messages": [{"role": "user", "content": {"__type__": "datetime", "__value__": "x"}}],
        "temperature": 0.5,
        "tools": [],
        "nul": "a\x00b",
        "emoji": "🙂",
    }
    submitted = json.loads(job(**body, tenant="acme").text(submitted_at=1.5))
    assert submitted == {"body": {"model": "m"} | body, "promptmill": {"submitted_at": 1.5, "tenant": "acme"}}


def test_our_options_and_the_providers_fields_do_not_collide() -> None:
    submitted = json.loads(job(metadata={"ours": 1}, extra_body={"metadata": {"theirs": 2}}).text(submitted_at=0))
    assert submitted["body"]["metadata"] == {"theirs": 2}
    assert submitted["promptmill"]["metadata"] == {"ours": 1}


def test_options_travel_only_when_given() -> None:
    options = {
        "tenant": "acme",
        "priority": "bulk",
        "deadline_s": 60,
        "metadata": [1],
        "max_attempts": 2,
        "repeat_timeouts": False,
    }
    assert json.loads(job(**options).text(submitted_at=2.25))["promptmill"] == {"submitted_at": 2.25} | options
    assert json.loads(job().text(submitted_at=2.25))["promptmill"] == {"submitted_at": 2.25}


def test_input_makes_an_embedding() -> None:
    assert new_job(model="m", input=["a", "b"]).kind == "embed"
    assert job().kind == "chat"


def test_repr_hides_the_prompt() -> None:
    assert CANARY not in repr(job(messages=[{"role": "user", "content": CANARY}]))


def test_an_unknown_model_is_refused_with_the_near_ones() -> None:
    models = frozenset({"gpt-4o-mini", "deepseek-v3.2"})
    with pytest.raises(UnknownModel, match=r"Did you mean gpt-4o-mini\?.*Known models: deepseek-v3\.2, gpt-4o-mini"):
        check_model(job(model="gpt-4o-mni"), models)
    with pytest.raises(UnknownModel, match=r"fallbacks: no worker offers 'gpt-4o-mni'\. Did you mean gpt-4o-mini\?"):
        check_model(job(model="gpt-4o-mini", fallbacks=["deepseek-v3.2", "gpt-4o-mni"]), models)
    check_model(job(model="gpt-4o-mini", fallbacks=["deepseek-v3.2"]), models)
    check_model(job(model="anything"), models | {"*"})
    check_model(job(model="anything"), None)


def test_given_ids_are_kept() -> None:
    assert job(id="invoice-17/a:b").id == check_id("invoice-17/a:b") == "invoice-17/a:b"
    assert job().id != job().id


def json_values(integers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
        max_leaves=20,
    )


@pytest.mark.promise(16)
@given(value=json_values(st.integers()), metadata=json_values(st.integers(-(2**63), 2**64 - 1)))
def test_any_json_value_arrives_as_it_was(value: Any, metadata: Any) -> None:
    submitted = json.loads(job(custom=value, metadata={"custom": metadata}).text(submitted_at=0))
    assert submitted["body"]["custom"] == value
    assert submitted["promptmill"]["metadata"]["custom"] == metadata


anything = st.recursive(
    st.none() | st.floats() | st.text(st.characters(codec=None)) | st.binary() | st.complex_numbers(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text() | st.integers(), children, max_size=3),
    max_leaves=12,
)


@pytest.mark.promise(16)
@given(value=anything)
def test_anything_else_is_refused_by_name(value: Any) -> None:
    try:
        text = job(custom=value).text(submitted_at=0)
    except InvalidJob as refusal:
        assert "custom" in str(refusal)
    else:
        assert json.loads(text.encode("utf-8", "strict"))["body"]["custom"] == value


def test_what_may_be_cached_waits_behind_nobody() -> None:
    def lane(**options: Any) -> str | None:
        asked = options if "input" in options else {"messages": MESSAGES, **options}
        return new_job(model="m", **asked).lane

    assert lane() == lane(temperature=1) == "normal m"
    assert lane(cache_ttl_s=60) is None
    assert lane(temperature=0) == lane(extra_body={"temperature": 0.0}) == lane(input="x") == "normal m repeatable"
    assert lane(temperature=0, cache_ttl_s=0) == "normal m", "this one will be called"
    assert lane(temperature=False) == "normal m"
