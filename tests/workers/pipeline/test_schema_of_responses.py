"""Responses that have to fit a JSON Schema, through the whole ladder."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.scripted import Answer
from workers.prompt.job import PromptJob, parse

from .test_schema_rung import GOOD, PRICE, PROMPT, SCHEMA, WRONG, answering

RESPONDS = {"apis": ["responses"]}


def response(*texts: str, **fields: Any) -> Answer:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    message = {"type": "message", "role": "assistant", "content": parts}
    usage = {"input_tokens": 1_000, "output_tokens": 50, "total_tokens": 1_050}
    return Answer(body={"id": "r-1", "status": "completed", "output": [message], "usage": usage, **fields})


def job(*, body: dict[str, Any] | None = None, **options: Any) -> PromptJob:
    """As a Celery producer sends it."""
    fields = {"model": "m", "input": PROMPT, **(body or {})}
    return parse("respond", "job-1", (), {**fields, "promptmill": {"schema": SCHEMA, **options}}, now=1e9)


async def run(pipeline_to: Any, job: PromptJob, *answers: Answer, **provider: Any) -> tuple[Any, list[Any]]:
    """The result, and the bodies that were sent."""
    with answering(*answers) as scripted:
        options = {"real_time": True, "price": PRICE, "provider": {**RESPONDS, **provider}}
        async with pipeline_to(scripted.base_url, **options) as pipeline:
            result = await pipeline.run(job)
        return result, [asked.body for asked in scripted.asked]


async def test_a_response_that_fits_is_the_answer(pipeline_to: Any) -> None:
    result, [sent] = await run(pipeline_to, job(body={"text": {"verbosity": "low"}}), response(GOOD))
    assert (result.text, result.repaired) == (GOOD, None)
    assert sent["text"]["verbosity"] == "low"
    wanted = sent["text"]["format"]
    assert (wanted["type"], wanted["schema"], wanted["strict"]) == ("json_schema", SCHEMA, True)
    assert wanted["name"] and "response_format" not in sent


async def test_broken_syntax_of_a_response_is_mended(pipeline_to: Any) -> None:
    result, sent = await run(pipeline_to, job(), response("```json\n" + GOOD[:10], GOOD[10:] + "\n```"))
    assert (json.loads(result.text), result.repaired, len(sent)) == (json.loads(GOOD), "syntax", 1)
    assert [part["text"] for part in result.response["output"][0]["content"]] == [result.text, ""]
    assert result.response["provider_fields"]["content"].startswith("```json")


@pytest.mark.parametrize("asked", [PROMPT, [{"role": "user", "content": PROMPT}]])
async def test_a_response_that_does_not_fit_is_asked_for_again(pipeline_to: Any, asked: Any) -> None:
    result, sent = await run(pipeline_to, job(body={"input": asked}, repair=1), response(WRONG), response(GOOD))
    assert (result.text, result.repaired) == (GOOD, "asked_again")
    question = json.dumps(sent[1]["input"])
    assert "was not valid" in question and "secret words" not in question
    assert sent[0]["input"] == asked


async def test_without_repair_a_response_that_does_not_fit_fails(pipeline_to: Any) -> None:
    result, sent = await run(pipeline_to, job(max_attempts=1), response(WRONG))
    assert (result.error.code, len(sent)) == ("bad_response", 1)
    assert "does not fit its schema" in result.error.message


async def test_a_response_that_was_cut_gets_more_room(pipeline_to: Any) -> None:
    cut = response(GOOD[:12], status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    result, sent = await run(pipeline_to, job(body={"max_output_tokens": 50}, repair=1), cut, response(GOOD))
    assert (result.text, result.repaired) == (GOOD, "longer")
    assert [body["max_output_tokens"] for body in sent][1] > 50


async def test_a_schema_in_the_body_counts_as_well(pipeline_to: Any) -> None:
    body = {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}
    result, _ = await run(pipeline_to, job(body=body, schema=None, max_attempts=1), response(WRONG))
    assert "does not fit its schema" in result.error.message


async def test_a_models_tool_call_is_no_such_answer(pipeline_to: Any) -> None:
    call = {"type": "function_call", "name": "find", "arguments": "{}", "call_id": "c"}
    result, _ = await run(pipeline_to, job(), response(output=[call]))
    assert result.ok and result.repaired is None


@pytest.mark.parametrize(("mode", "wanted"), [("json_object", {"type": "json_object"}), ("none", None)])
async def test_a_model_without_schemas_is_told_in_words(pipeline_to: Any, mode: str, wanted: Any) -> None:
    answers = (job(body={"instructions": "Be brief."}), response(GOOD))
    result, [sent] = await run(pipeline_to, *answers, structured_outputs=mode)
    assert result.text == GOOD
    assert sent["text"].get("format") == wanted
    assert sent["instructions"].startswith("Be brief.\n\n") and '"additionalProperties"' in sent["instructions"]


async def test_the_simulator_knows_schemas_of_responses(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate()
    async with pipeline_to(simulator.url, real_time=True, price=PRICE, provider=RESPONDS) as pipeline:
        result = await pipeline.run(job())
    assert result.ok and json.loads(result.text).keys() == {"name", "age"}
