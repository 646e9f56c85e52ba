"""The option `schema` as `response_format`, and what contradicts it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.errors import BadResponse, InvalidJob
from tasks.results import JobError, PromptResult
from tasks.wire.request import new_job
from tasks.wire.schema import response_format
from workers.prompt.failure import Failure
from workers.prompt.job import parse

OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "required": ["a"], "additionalProperties": False}
MESSAGES = [{"role": "user", "content": "Hi"}]
WANTED = {"type": "json_schema", "json_schema": {"name": "n", "schema": OPEN}}


@pytest.mark.parametrize(
    ("schema", "is_strict"),
    [
        (CLOSED, True),
        (OPEN, False),
        ({**CLOSED, "properties": {"a": OPEN}}, False),
        ({**CLOSED, "properties": {"a": {"items": CLOSED}}}, True),
        ({**CLOSED, "properties": {"a": {"anyOf": [CLOSED, {"type": "null"}]}}}, True),
        ({**CLOSED, "properties": {"a": {"anyOf": [OPEN, {"type": "null"}]}}}, False),
        ({**CLOSED, "$defs": {"x": {"type": "object"}}}, False),
        ({**CLOSED, "required": [["a"]]}, False),
        ({**CLOSED, "properties": {"a": {"type": "string", "format": "date"}}}, True),
        ({**CLOSED, "properties": {"a": {"type": "string", "format": "uri"}}}, False),
        ({**CLOSED, "properties": {"a": {"type": "string", "maxLength": 3}}}, False),
        ({**CLOSED, "allOf": [{}]}, False),
        ({**CLOSED, "properties": {"a": True}}, False),
        ({"type": "object", "additionalProperties": False}, False),
        ({"type": "array", "items": CLOSED}, False),
    ],
)
def test_what_a_model_can_be_constrained_to_is_strict(schema: dict[str, Any], is_strict: bool) -> None:
    assert response_format(schema)["json_schema"].get("strict", False) is is_strict


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({"messages": MESSAGES, "schema": OPEN, "response_format": WANTED}, "schema: stands beside"),
        ({"messages": MESSAGES, "schema": OPEN, "extra_body": {"response_format": WANTED}}, "schema: stands beside"),
        ({"input": "text", "schema": OPEN}, "schema: only a chat"),
        ({"messages": MESSAGES, "repair": 1}, "repair: there is no schema"),
        ({"messages": MESSAGES, "repair": 1, "response_format": {"type": "json_object"}}, "repair: there is no schema"),
        ({"input": "text", "repair": 1, "response_format": WANTED}, "repair: there is no schema"),
    ],
)
def test_contradictions_are_refused(job: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        new_job(model="m", **job)
    assert str(refused.value).startswith(told)
    options = {name: job[name] for name in ("schema", "repair") if name in job}
    body = {name: value for name, value in job.items() if name not in options} | job.get("extra_body", {})
    with pytest.raises(Failure) as by_worker:
        parse("chat" if "messages" in job else "embed", "j", (), {"model": "m", **body, "promptmill": options}, now=0.0)
    assert told.partition(": ")[2] in by_worker.value.message


@pytest.mark.covers("option", "schema")
def test_what_agrees_travels() -> None:
    for job in ({"schema": OPEN, "repair": 2}, {"repair": 2, "response_format": WANTED}, {"repair": 0}):
        text = new_job(model="m", messages=MESSAGES, **job).text(submitted_at=0.0)
        read = parse("chat", "j", (text,), {}, now=0.0)
        assert read.options.repair == job["repair"]
        assert ("response_format" in read.body) is (job["repair"] > 0)


class Person:
    """As a Pydantic model reads."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def model_validate_json(cls, text: str, /) -> Person:
        return cls(**json.loads(text))


def test_a_result_is_read_as_json_and_as_a_model() -> None:
    result = PromptResult("j", "succeeded", text='{"name": "Ada"}', response={})
    assert (result.json(), result.parse(Person).name) == ({"name": "Ada"}, "Ada")
    with pytest.raises(ValueError, match="is no JSON; the option `schema`"):
        PromptResult("j", "succeeded", text="Ada", response={}).json()
    with pytest.raises(ValueError, match="has no text"):
        PromptResult("j", "succeeded", response={}).parse(Person)


def test_a_failed_result_raises_its_error() -> None:
    error = JobError("bad_response", "wrong", last_answer="the canary")
    failed = PromptResult("j", "failed", error=error)
    for read in (failed.json, lambda: failed.parse(Person)):
        with pytest.raises(BadResponse) as raised:
            read()
        assert raised.value.result is failed
    assert PromptResult.from_dict(failed.to_dict()) == failed and "canary" not in repr(failed)
