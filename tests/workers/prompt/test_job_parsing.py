"""Both wire forms of a job, and what is refused."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob, parse

NOW = 5_000.0
MESSAGES = [{"role": "user", "content": "Hello"}]
BODY = {"model": "m", "messages": MESSAGES}


def as_text(body: Any, options: Any = None) -> list[str]:
    return [json.dumps({"body": body, "promptmill": options or {}})]


def read(args: Any = (), kwargs: Any = None, *, kind: Any = "chat") -> PromptJob:
    return parse(kind, "id-1", args, kwargs or {}, group="pmg-1", now=NOW)


def refused(args: Any = (), kwargs: Any = None, *, kind: Any = "chat") -> str:
    with pytest.raises(Failure) as caught:
        read(args, kwargs, kind=kind)
    assert caught.value.code == "bad_request"
    assert not caught.value.retryable
    return caught.value.message


def test_both_forms_give_the_same_job() -> None:
    body = {**BODY, "temperature": 0.5, "metadata": {"theirs": 1}}
    options = {"tenant": "t", "priority": "bulk", "deadline_s": 60, "metadata": {"ours": 2}, "submitted_at": 4_000.5}

    from_client = read(as_text(body, options))
    from_stock = read(kwargs={**body, "promptmill": options})

    assert from_client == from_stock
    assert from_client.body == body
    assert from_client.options.metadata == {"ours": 2}
    assert from_client.options.deadline_at == 4_060.5
    assert (from_client.id, from_client.model, from_client.group) == ("id-1", "m", "pmg-1")


def test_without_a_submission_time_the_deadline_counts_from_now() -> None:
    assert read(kwargs={**BODY, "promptmill": {"deadline_s": 10}}).options.deadline_at == NOW + 10


def test_no_options_mean_defaults() -> None:
    options = read(kwargs=BODY).options
    assert (options.priority, options.deadline_at, options.max_attempts) == ("normal", None, None)


def test_an_option_that_is_null_is_not_given() -> None:
    assert (
        read(as_text(BODY, {"tenant": None, "deadline_s": None, "priority": None})).options
        == read(as_text(BODY)).options
    )


def test_kombus_type_hooks_never_see_what_the_client_sends() -> None:
    hooked = {"__type__": "datetime", "__value__": "x"}
    assert read(as_text({**BODY, "tools": [hooked]})).body["tools"] == [hooked]


@pytest.mark.parametrize("number", [2**64, -(2**70), 2**63 - 1, 123456789012345678901234567890, 0.1, 1e300])
def test_numbers_keep_every_digit(number: float) -> None:
    seed = read(as_text({**BODY, "seed": number})).body["seed"]
    assert (seed, type(seed)) == (number, type(number))


def test_the_prompt_does_not_show_in_a_jobs_repr() -> None:
    job = read(as_text({"model": "m", "messages": [{"role": "user", "content": "canary"}]}, {"metadata": "canary"}))
    assert "canary" not in repr(job)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        (["{"], {}, "not JSON"),
        (["[1]"], {}, "not {"),
        (['{"body": []}'], {}, "not {"),
        ([BODY], {}, "keyword arguments"),
        (["{}", "{}"], {}, "keyword arguments"),
        (["{}"], {"model": "m"}, "keyword arguments"),
        ([], {}, "names no model"),
        ([], {"messages": MESSAGES}, "names no model"),
        ([], {"model": 7, "messages": MESSAGES}, "names no model"),
        ([], {"model": "m"}, "`messages`"),
        ([], {"model": "m", "messages": []}, "`messages`"),
        ([], {**BODY, "promptmill": [1]}, "not an object"),
        ([], {**BODY, "temperature": math.nan}, "temperature"),
        ([], {**BODY, "temperature": math.inf}, "temperature"),
        ([], {**BODY, "stop": ["\ud800"]}, "stop[0]"),
        ([], {**BODY, "logit_bias": {1: 2}}, "logit_bias"),
        ([], {**BODY, "when": datetime(2026, 1, 1, tzinfo=UTC)}, "datetime"),
        (['{"body": {"model": "m", "messages": [1], "x": NaN}}'], {}, "not JSON"),
        (['{"body": {"model": "m", "messages": [1], "x": "\\ud800"}}'], {}, "not JSON"),
        (['{"body": {"model": "m", "messages": [1], "x": 1e999}}'], {}, "not JSON"),
    ],
)
def test_what_cant_be_sent_is_refused_with_the_reason(args: Any, kwargs: Any, says: str) -> None:
    assert says in refused(args, kwargs)


def test_an_embedding_needs_an_input() -> None:
    assert "`input`" in refused(kwargs={"model": "m", "messages": MESSAGES}, kind="embed")
    assert read(kwargs={"model": "m", "input": ["a", "b"]}, kind="embed").kind == "embed"


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [101, 900, 1_500, 200_000])
def test_deep_nesting_is_refused_in_both_forms(depth: int) -> None:
    text = '{"body": {"model": "m", "messages": %s}}' % ("[" * depth + "1" + "]" * depth)
    assert "nest" in refused([text])
    assert "is nested" in refused(kwargs={"model": "m", "messages": nested(min(depth, 900))})


def test_many_brackets_alone_are_not_deep() -> None:
    messages = [{"role": "user", "content": "if (a[0]) { b[1] }"}] * 200
    assert read(as_text({"model": "m", "messages": messages})).body["messages"] == messages


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dedline_s": 5}, "did you mean `deadline_s`"),
        ({"zzz": 5}, "known are"),
        ({"tenant": 5}, "tenant"),
        ({"priority": "urgent"}, "'interactive', 'normal' or 'bulk'"),
        ({"priority": []}, "'interactive', 'normal' or 'bulk'"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": True}, "deadline_s"),
        ({"deadline_s": "5"}, "deadline_s"),
        ({"deadline_s": 10**20}, "deadline_s"),
        ({"cache_ttl_s": "60"}, "`promptmill.cache_ttl_s`: must be a number of seconds"),
        ({"submitted_at": {}}, "submitted_at"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"fallbacks": ["m2", 3]}, "`promptmill.fallbacks`: must be a list of models' names"),
        ({"delay_s": 5}, "there is no such option"),
        ({"repeat_timeouts": 1}, "`promptmill.repeat_timeouts`: must be true or false"),
        ({"repeat_timeouts": "yes"}, "repeat_timeouts"),
        ({"metadata": {"a": 2**70}}, "metadata"),
    ],
)
def test_wrong_options_are_refused_by_name(options: Any, says: str) -> None:
    assert says in refused(as_text(BODY, options))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(args=st.lists(anything | st.text(), max_size=2), kwargs=st.dictionaries(st.text(), anything, max_size=3))
def test_no_arguments_raise_anything_but_a_named_failure(args: list[Any], kwargs: dict[str, Any]) -> None:
    try:
        job = parse("chat", "id", args, kwargs, now=NOW)
    except Failure as failure:
        assert failure.code == "bad_request"
    else:
        assert job.model


@given(options=st.dictionaries(st.sampled_from(["deadline_s", "fallbacks", "priority", "tenant"]), anything))
def test_no_options_raise_anything_but_a_named_failure(options: dict[str, Any]) -> None:
    try:
        read(kwargs={**BODY, "promptmill": options})
    except Failure as failure:
        assert failure.code == "bad_request"


def test_names_are_bounded_before_they_are_compared() -> None:
    """Of a stock producer: 8 MB took difflib seconds, on the loop of all jobs."""
    long = "x" * 8_000_000
    since_s = time.thread_time()
    assert "model's name at most 200" in refused(kwargs={**BODY, "model": long})
    assert "no such option" in refused(kwargs={**BODY, "promptmill": {long: 1}})
    assert time.thread_time() - since_s < 0.5
