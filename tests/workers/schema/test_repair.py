"""Repair of JSON's syntax: nothing is added, and nothing is lost."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from workers.providers import Answer
from workers.schema.reading import read
from workers.schema.repair import MAX_DEPTH, MOST_READ, NotRepairable, readings
from workers.schema.validator import validator_of


def repaired(text: str, *, is_whole: bool = True) -> str:
    """The one reading of a text."""
    found = readings(text, is_whole=is_whole)
    if len(found) > 1:
        raise NotRepairable("several readings")
    return found[0]


REPAIRED = {
    '{"a": 1,}': {"a": 1},
    "[1, 2, ]": [1, 2],
    '```json\n{"a": 1}\n```': {"a": 1},
    '```\n{"a": [1\n```': {"a": [1]},
    'Sure! Here it is:\n{"a": 1}\nAnything else?': {"a": 1},
    "{'a': 'it\\'s \"so\"', 'b': None, 'c': True}": {"a": 'it\'s "so"', "b": None, "c": True},
    '{a: "b", $c_1: 2}': {"a": "b", "$c_1": 2},
    '{"a": "two\nlines\tand a tab"}': {"a": "two\nlines\tand a tab"},
    '{"a": {"b": "c"': {"a": {"b": "c"}},
    '{"a": [1, {"b": "x"}, {"c": 2 ': {"a": [1, {"b": "x"}, {"c": 2}]},
    '{"a": [1, {"b": "x"}}': {"a": [1, {"b": "x"}]},
    '{"a": true': {"a": True},
    '{"a": 1}}': {"a": 1},
    '<think>{"draft": 1}</think>\n{"a": 1}': {"a": 1},
    '\ufeff{"a": 1}': {"a": 1},
    '{"a": "```py\\nx = {}\\n```",}': {"a": "```py\nx = {}\n```"},
    '{"n": 123456789012345678901234567890.10,}': {"n": 123456789012345678901234567890.10},
}

REFUSED = [
    '<think>Perhaps {"a": 1}? No',
    *("", "no JSON", '"a text"', "12"),
    *('{"a": 12', '{"a": "cut stri', '{"a": [1, 2', '{"a": 1,', '{"a": 1, "b":', '{"a": tr', '{"a', "{", "["),
    '{"a": {"b": 1, "c": 2}',  # where does c belong?
    "[[1, 2], [3, 4 ",
    "[[1, 2], [[3, 4 ]",
    "[[" + "1," * int(MOST_READ**0.5) + "1, 2]",
    '{"a": 1} {"b": 2}',
    '{"a": 1}, "b": 2}',
    '{"a": 1}}, "b": 2}',
    "[1], [2]",
    '{"a": "x", "a": "y",}',
    '{"a": "he said "hi" there",}',
    "{'a': 'it's'}",
    *('{"a": 01,}', '{"a": +1,}', '{"a": .5,}', '{"a": 1.,}', '{"a": NaN,}', '{"a": Infinity,}', '{"a": 1,234}'),
    *('{"a": 1 "b": 2}', "[1 2]", "[1,,2]", '{"a" 1}', '{"a": b}', '{"a": undefined}', "{1: 2}"),
    *('{"a": "\\x41",}', '{"a": "\\ud83d",}', '{"a": ٣,}'),
    "{'a': 'x\\'}",
    "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "[" * 100_000,
]


@pytest.mark.parametrize(("text", "value"), REPAIRED.items())
def test_syntax_is_repaired(text: str, value: Any) -> None:
    assert orjson.loads(repaired(text)) == value


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_add_or_lose_something_is_not(text: str) -> None:
    with pytest.raises(NotRepairable):
        repaired(text)


def test_a_cut_text_gets_no_brackets() -> None:
    with pytest.raises(NotRepairable):
        repaired('{"a": {"b": "c"', is_whole=False)
    assert repaired('{"a": 1}\nBesides', is_whole=False) == '{"a":1}'


def test_a_missing_bracket_has_a_reading_for_each_place() -> None:
    text = '{"a": {"b": 1, "c": 2, "d": 3}, "e": 4'
    assert [json.loads(each) for each in readings(text + " ")] == [
        {"a": {"b": 1, "c": 2, "d": 3}, "e": 4},
    ]
    assert [json.loads(each) for each in readings('{"a": {"b": 1, "c": 2}')] == [
        {"a": {"b": 1, "c": 2}},
        {"a": {"b": 1}, "c": 2},
    ]
    assert readings('{"a": {"b": 1,}') == ['{"a":{"b":1}}']


INNER = {"properties": {"b": {}, "c": {}}, "required": ["b", "c"]}
OUTER = {"properties": {"a": {"properties": {"b": {}}}, "c": {}}, "required": ["a", "c"]}


@pytest.mark.parametrize(
    ("schema", "meant"),
    [
        ({"properties": {"a": INNER}}, {"a": {"b": 1, "c": 2}}),
        (OUTER, {"a": {"b": 1}, "c": 2}),
        ({"properties": {"a": {"properties": {"b": {}}}}}, None),  # both fit
        ({"required": ["z"]}, None),  # none does
    ],
)
def test_the_schema_decides_where_a_bracket_is_missing(schema: dict[str, Any], meant: Any) -> None:
    text = '{"a": {"b": 1, "c": 2}'
    answer = Answer(text, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, None)
    reading = read(answer, validator_of(schema))
    assert (reading.misfit is None) is (meant is not None)
    assert reading.answer.text == text if meant is None else json.loads(reading.answer.text or "") == meant


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
CONTAINERS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
).filter(lambda value: isinstance(value, dict | list))


@given(CONTAINERS, st.booleans(), st.sampled_from([None, 2]))
def test_valid_json_comes_back_as_it_is(value: Any, is_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert json.loads(repaired(text)) == value
    assert json.loads(repaired(f"```json\n{text}\n```")) == value


def scalars(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in (key, *scalars(inner))]
    return [each for inner in value for each in scalars(inner)] if isinstance(value, list) else [value]


TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|[A-Za-z_$][A-Za-z0-9_$]*', re.DOTALL)


def tokens(text: str) -> list[Any]:
    """The scalars that stand in a text from its first bracket on; a name without quotes counts as a text."""
    begin = re.search(r"[{\[]", text)
    found = TOKEN.findall(text, begin.start()) if begin else []
    return [json.loads(each, strict=False) if each[0] in '"-0123456789' else LITERALS.get(each, each) for each in found]


LITERALS = {"true": True, "false": False, "null": None}


@given(CONTAINERS, st.data())
def test_no_damage_adds_or_loses_a_value(value: Any, data: st.DataObject) -> None:
    """Characters taken out and put in anywhere: the scalars of the result are the text's own, in their order."""
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text)))
    taken = data.draw(st.integers(0, 3) | st.just(len(text)))
    damaged = text[:at] + data.draw(st.text(alphabet='{}[],:" \n1a', max_size=2)) + text[at + taken :]
    assume("'" not in damaged)
    try:
        found = scalars(json.loads(repaired(damaged)))
    except NotRepairable:
        return
    assert found == tokens(damaged)[: len(found)]
