"""Answers that fit a JSON Schema, and how the simulator breaks them."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from workers.schema.form import asked_again, in_mode
from workers.schema.validator import validator_of
from workers.simulator import FAULT_HEADER, RunningSimulator
from workers.simulator.answers.broken_json import KINDS, broken
from workers.simulator.answers.objects import fitting_object

from .conftest import Start, ledger

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 1, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    PERSON,
    {},
    {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 2},
    {"type": ["null", "string"], "minLength": 40, "maxLength": 50},
    {"type": "object", "properties": {"at": {"type": "string", "format": "date-time"}}, "required": ["at", "more"]},
    {"type": "number", "minimum": -3, "exclusiveMaximum": -1.5, "multipleOf": 0.5},
    {"type": "integer", "exclusiveMinimum": 4, "maximum": 6},
    {"anyOf": [{"type": "boolean"}, {"enum": ["a", "b"]}, {"const": 7}]},
    {
        "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}, "id": {"type": "integer"}}}},
        "allOf": [{"$ref": "#/$defs/node"}, {"type": "object", "required": ["id"]}],
    },
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}], "items": False, "minItems": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_objects_fit_their_schema_and_repeat(schema: Any) -> None:
    validator = validator_of(schema)
    for seed in range(20):
        made = fitting_object(schema, seed=seed, key=b"k")
        assert validator.misfit(made) is None, made
        assert made == fitting_object(schema, seed=seed, key=b"k")


def test_each_way_to_break_an_object_breaks_it() -> None:
    text, validator = '{"name": "it\'s", "age": 3}', validator_of(PERSON)
    for kind in KINDS:
        try:
            assert validator.misfit(json.loads(broken(text, kind))) is not None
        except ValueError:
            continue
    assert broken("[1]", KINDS[0]) == "[1]"


def asking(schema: Any = PERSON, content: str = "Who was it? " * 10, **body: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return {"model": "m", "messages": [{"role": "user", "content": content}], "response_format": wanted, **body}


async def answer_to(
    http: aiohttp.ClientSession, simulator: RunningSimulator, body: dict[str, Any], fault: str | None = None
) -> tuple[str, str]:
    headers = {FAULT_HEADER: fault} if fault else {}
    async with http.post(simulator.url + "/chat/completions", json=body, headers=headers) as response:
        answered = await response.json()
        assert response.status == 200, answered
    [choice] = answered["choices"]
    return choice["message"]["content"], choice["finish_reason"]


async def test_the_same_prompt_has_one_object(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    first, reason = await answer_to(http, simulator, asking())
    assert (validator_of(PERSON).misfit(json.loads(first)), reason) == (None, "stop")
    for same in (in_mode(asking(), "json_object"), in_mode(asking(), "none"), asked_again(asking(), "an error")):
        assert await answer_to(http, simulator, same) == (first, "stop")
    assert (await answer_to(http, simulator, asking(content="Another?")))[0] != first


async def test_a_schema_is_a_part_of_the_prompt(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    await answer_to(http, simulator, asking())
    await answer_to(http, simulator, {**asking(), "response_format": None})
    with_schema, without = (call["prompt_tokens"] for call in await ledger(http, simulator))
    assert with_schema - without == pytest.approx(len(json.dumps(PERSON)) / 4, abs=1)


async def test_a_larger_limit_cures_truncation(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    whole, _ = await answer_to(http, simulator, asking())
    cut, reason = await answer_to(http, simulator, asking(max_tokens=50), "truncated")
    assert (reason, whole.startswith(cut), len(cut) < len(whole)) == ("length", True, True)
    assert (await answer_to(http, simulator, asking(max_tokens=50), "truncated"))[1] == "length"
    assert await answer_to(http, simulator, asking(max_tokens=51), "truncated") == (whole, "stop")


async def test_what_was_wrong_cures_broken_json(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(seed=3)
    whole, _ = await answer_to(http, simulator, asking())
    assert (await answer_to(http, simulator, asking(), "badjson"))[0] != whole
    assert (await answer_to(http, simulator, asked_again(asking(), "an error"), "badjson"))[0] == whole
    assert [call["fault"] for call in await ledger(http, simulator)] == [None, "badjson", None]


async def test_broken_json_needs_a_schema(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    plain = {**asking(), "response_format": None}
    assert await answer_to(http, simulator, plain, "badjson") == await answer_to(http, simulator, plain)


async def test_deepseek_takes_json_objects_alone(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(dialect="deepseek")
    async with http.post(simulator.url + "/chat/completions", json=asking()) as response:
        assert (response.status, "unavailable" in await response.text()) == (400, True)
    text, _ = await answer_to(http, simulator, in_mode(asking(), "json_object"))
    assert validator_of(PERSON).misfit(json.loads(text)) is None
