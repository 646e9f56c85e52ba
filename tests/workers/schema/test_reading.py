"""An answer's choices, held against a schema."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers import Answer
from workers.schema.reading import read
from workers.schema.validator import validator_of

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def answer(*texts: Any, reason: str = "stop") -> Answer:
    choices = [{"index": n, "message": {"content": each}, "finish_reason": reason} for n, each in enumerate(texts)]
    return Answer(texts[0] if isinstance(texts[0], str) else None, {"id": "c", "choices": choices}, None)


@given(ANY, st.booleans(), st.sampled_from([None, 1]))
def test_valid_json_passes_as_the_same_answer(value: Any, is_ascii: bool, indent: int | None) -> None:
    came = answer(json.dumps(value, ensure_ascii=is_ascii, indent=indent))
    reading = read(came, validator_of({}))
    assert reading.answer is came and (reading.misfit, reading.is_repaired) == (None, False)


def test_the_providers_answer_stays_as_it_came() -> None:
    came = answer("[1,]", "[2]")
    before = copy.deepcopy(came.response)
    reading = read(came, validator_of({}))
    assert came.response == before
    first, second = reading.answer.response["choices"]
    assert (first["message"]["content"], first["provider_fields"]) == ("[1]", {"content": "[1,]"})
    assert second is came.response["choices"][1]
    assert reading.answer.text == "[1]"


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "model_length"])
def test_a_cut_answer_says_so_in_each_providers_words(reason: str) -> None:
    reading = read(answer('{"a": "b"', reason=reason), validator_of({}))
    assert reading.is_cut and reading.misfit is not None and reading.last_text == '{"a": "b"'


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "prohibited_content"])
def test_a_filtered_answer_says_so_in_each_providers_words(reason: str) -> None:
    reading = read(answer('{"a": "b', reason=reason), validator_of({}))
    assert reading.is_filtered and not reading.is_cut


def test_parts_of_a_text_are_one() -> None:
    came = answer([{"type": "text", "text": '{"a":'}, {"type": "text", "text": " 1}"}])
    assert read(came, validator_of({"required": ["a"]})).misfit is None


def test_a_blank_answer_is_none() -> None:
    assert read(answer("   \n"), validator_of({})).misfit == "the answer is not JSON: no object and no list"
