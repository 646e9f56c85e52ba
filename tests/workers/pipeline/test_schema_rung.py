"""Answers that have to fit a JSON Schema, through the whole ladder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from config.catalog import Catalog
from tests.support.scripted import Answer, Asked, ScriptedProvider
from workers.pipeline.pipeline import Pipeline
from workers.pipeline.rungs.schema import LARGE_CHARACTERS, Schema
from workers.pipeline.trip import Shape
from workers.prompt.job import PromptJob, parse
from workers.prompt.parked import Parked

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOOD = '{"name": "Ada", "age": 36}'
WRONG = '{"name": "Ada", "age": "secret words"}'
PROMPT = "Who wrote the first program? " * 20
PRICE = {"input": 1, "output": 10, "date": "2026-01-01", "source": "a test"}


def completion(text: str | None, reason: str = "stop", **message: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 50}
    return Answer(body={"id": "c-1", "choices": [choice], "usage": usage})


@contextmanager
def answering(*answers: Answer | str) -> Iterator[ScriptedProvider]:
    """A provider that gives these in turn, and the last of them for ever."""

    def script(asked: Asked) -> Answer:
        answer = answers[min(asked.number, len(answers) - 1)]
        return completion(answer) if isinstance(answer, str) else answer

    provider = ScriptedProvider(script)
    try:
        yield provider
    finally:
        provider.close()


def job(*, body: dict[str, Any] | None = None, **options: Any) -> PromptJob:
    """As a Celery producer sends it."""
    fields = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], **(body or {})}
    return parse("chat", "job-1", (), {**fields, "promptmill": {"schema": SCHEMA, **options}}, now=1e9)


@pytest.fixture
def ask(pipeline_to: Any, free_limits: Any) -> Callable[..., Any]:
    async def ask(provider: ScriptedProvider, asked: PromptJob | None = None, /, **options: Any) -> Any:
        async with pipeline_to(provider.base_url, limits=free_limits, price=PRICE, **options) as pipeline:
            return await pipeline.run(asked or job())

    return ask


def prompts(provider: ScriptedProvider) -> list[str]:
    return [asked.body["messages"][-1]["content"] for asked in provider.asked]


# -- without a further call


async def test_an_answer_that_fits_passes_as_it_came(ask: Any) -> None:
    with answering(GOOD) as provider:
        result = await ask(provider)
    assert (result.text, result.repaired, result.attempts, result.failed_attempts) == (GOOD, None, 1, ())
    assert result.json() == {"name": "Ada", "age": 36}
    [asked] = provider.asked
    assert asked.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    assert "promptmill" not in asked.body


async def test_broken_syntax_is_repaired_without_a_call(ask: Any) -> None:
    broken = "```json\n{'name': 'Ada', \"age\": 36,}\n```"
    with answering(broken) as provider:
        result = await ask(provider)
    assert (result.text, result.repaired, len(provider.asked)) == ('{"name":"Ada","age":36}', "syntax", 1)
    [choice] = result.response["choices"]
    assert choice["message"]["content"] == result.text
    assert choice["provider_fields"] == {"content": broken}


async def test_a_large_answer_is_repaired_too(ask: Any) -> None:
    name = "Ada " * LARGE_CHARACTERS
    with answering(f'{{"name": "{name}", "age": 36,}}') as provider:
        result = await ask(provider)
    assert (result.json()["name"], result.repaired) == (name, "syntax")


async def test_a_misfit_fails_and_keeps_the_answer(ask: Any) -> None:
    with answering(WRONG) as provider:
        result = await ask(provider)
    error = result.error
    assert (result.status, error.code, error.retryable, len(provider.asked)) == ("failed", "bad_response", True, 1)
    assert 'properties/age: the value is not of type "integer"' in error.message and "`repair=1`" in error.message
    assert error.last_answer == WRONG and WRONG not in repr(result)
    [attempt] = result.failed_attempts
    assert (attempt.usage.output_tokens, attempt.cost_usd, attempt.next) == (50, 0.0015, None)
    assert result.cost_usd == 0.0015 and "secret" not in error.message + attempt.message


# -- further calls


@pytest.mark.covers("option", "repair")
async def test_a_misfit_is_asked_for_once_more(ask: Any) -> None:
    with answering(WRONG, GOOD) as provider:
        result = await ask(provider, job(repair=1))
    assert (result.text, result.repaired, result.attempts) == (GOOD, "asked_again", 2)
    first, second = prompts(provider)
    assert first == PROMPT and second.startswith(PROMPT) and "properties/age" in second and "secret" not in second
    assert len(second) <= 1.3 * len(first)
    assert [attempt.next.partition(":")[0] for attempt in result.failed_attempts] == ["asked_again"]
    assert result.cost_usd == pytest.approx(0.003)


async def test_the_prompt_does_not_grow_with_each_call(ask: Any) -> None:
    with answering(WRONG, "no JSON at all", WRONG, GOOD) as provider:
        result = await ask(provider, job(repair=3))
    assert (result.repaired, result.attempts, len(result.failed_attempts)) == ("asked_again", 4, 3)
    assert "properties/age" not in prompts(provider)[2]  # the last error only
    assert max(map(len, prompts(provider))) <= 1.3 * len(PROMPT)


async def test_no_more_calls_than_permitted(ask: Any) -> None:
    with answering(WRONG) as provider:
        result = await ask(provider, job(repair=2))
    assert (result.status, len(provider.asked)) == ("failed", 3)
    assert "2 further calls brought none" in result.error.message
    assert result.usage.output_tokens == 150 and result.cost_usd == pytest.approx(0.0045)


@pytest.mark.covers("catalog", "models.max_output_tokens")
async def test_a_truncated_answer_is_permitted_more(ask: Any) -> None:
    cut = completion('{"name": "Ad', "length")
    with answering(cut, GOOD) as provider:
        result = await ask(provider, job(repair=1, body={"max_tokens": 100}), max_output_tokens=300)
    assert (result.text, result.repaired) == (GOOD, "longer")
    assert [asked.body["max_tokens"] for asked in provider.asked] == [100, 300]
    assert prompts(provider) == [PROMPT, PROMPT]


@pytest.mark.parametrize(("written", "permitted"), [(50, 1_024), (4_096, 16_384)])
async def test_a_limit_of_the_provider_s_own_is_raised(ask: Any, written: int, permitted: int) -> None:
    cut = completion('{"name": "Ad', "length")
    cut.body["usage"]["completion_tokens"] = written
    with answering(cut, GOOD) as provider:
        result = await ask(provider, job(repair=1))
    assert (result.text, result.repaired) == (GOOD, "longer")
    assert [asked.body.get("max_tokens") for asked in provider.asked] == [None, permitted]


async def test_a_truncated_answer_is_never_asked_again(ask: Any) -> None:
    with answering(completion('{"name": "Ad', "length")) as provider:
        result = await ask(provider, job(repair=5, body={"max_completion_tokens": 100}))
    assert [asked.body["max_completion_tokens"] for asked in provider.asked] == [100, 400]
    assert result.error.last_answer == '{"name": "Ad' and "max_tokens" in result.error.message


async def test_a_refused_limit_leaves_it_truncated(ask: Any) -> None:
    refused = Answer(400, {"error": {"message": "max_tokens is too large"}})
    with answering(completion('{"name": "Ad', "length"), refused) as provider:
        result = await ask(provider, job(repair=1, body={"max_tokens": 9_000}))
    error = result.error
    assert (error.code, error.last_answer, len(provider.asked)) == ("bad_response", '{"name": "Ad', 2)
    assert "refused 36,000 tokens" in error.message and "`max_output_tokens`" in error.message


async def test_reasoning_that_used_up_the_limit_is_truncated(ask: Any) -> None:
    spent = completion("", "length", reasoning_content="hm")
    with answering(spent, GOOD) as provider:
        result = await ask(provider, job(repair=1, body={"max_tokens": 100}))
    assert (result.text, result.repaired, result.attempts) == (GOOD, "longer", 2)
    assert [attempt.next.partition(":")[0] for attempt in result.failed_attempts] == ["longer"]


async def test_an_answer_without_text_is_not_the_last_one(ask: Any) -> None:
    with answering(WRONG, completion("", "length", reasoning_content="hm")) as provider:
        result = await ask(provider, job(repair=1, body={"max_tokens": 100}))
    assert (result.error.last_answer, result.attempts) == (WRONG, 2)


async def test_a_cut_answer_that_is_whole_json_is_taken(ask: Any) -> None:
    with answering(completion(GOOD + "\nLet me exp", "length")) as provider:
        result = await ask(provider, job(repair=1))
    assert (result.json()["age"], result.repaired, len(provider.asked)) == (36, "syntax", 1)


async def test_further_calls_are_none_of_the_attempts(ask: Any) -> None:
    busy = Answer(500, {"error": {"message": "busy"}})
    with answering(WRONG, busy, GOOD) as provider:
        result = await ask(provider, job(repair=1, max_attempts=2))
    assert (result.text, result.attempts) == (GOOD, 3)
    with answering(WRONG, busy, GOOD) as provider:
        result = await ask(provider, job(repair=1, max_attempts=1))
    assert (result.error.code, result.error.last_answer, len(provider.asked)) == ("server_error", WRONG, 2)


# -- what is left alone


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, "tool_calls", tool_calls=[{"id": "1", "type": "function", "function": {"name": "f"}}]),
        completion(None, refusal="I can't help with that."),
    ],
)
async def test_tool_calls_and_refusals_are_left_alone(ask: Any, answer: Answer) -> None:
    with answering(answer) as provider:
        result = await ask(provider, job(repair=1))
    assert (result.status, result.text, result.repaired, len(provider.asked)) == ("succeeded", None, None, 1)
    with pytest.raises(ValueError, match="has no text"):
        result.json()


async def test_what_a_filter_cut_is_not_repaired(ask: Any) -> None:
    with answering(completion('{"name": "Ad', "content_filter")) as provider:
        result = await ask(provider, job(repair=1))
    assert (result.error.code, len(provider.asked)) == ("content_filter", 1)


async def test_each_of_several_choices_has_to_fit(ask: Any) -> None:
    def both(first: str, second: str) -> Answer:
        choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in (first, second)]
        return Answer(body={"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    with answering(both(GOOD, WRONG), both(GOOD + ",}", GOOD[:-1] + ",}")) as provider:
        result = await ask(provider, job(repair=2, body={"n": 2}))
    assert result.error is not None  # a comma after the object may begin a second value
    with answering(both(GOOD, WRONG), both(GOOD, GOOD[:-1] + ",}")) as provider:
        result = await ask(provider, job(repair=1, body={"n": 2}))
    assert [choice["message"]["content"] for choice in result.response["choices"]] == [
        GOOD,
        '{"name":"Ada","age":36}',
    ]
    assert result.text == GOOD


# -- what a model can


@pytest.mark.covers("catalog", "providers.structured_outputs", "models.structured_outputs")
@pytest.mark.parametrize(
    ("provider_can", "model_can", "sent"),
    [
        ("json_object", None, {"type": "json_object"}),
        ("json_schema", "none", None),
        ("none", "json_object", {"type": "json_object"}),
    ],
)
async def test_a_model_without_schemas_reads_it(ask: Any, provider_can: str, model_can: Any, sent: Any) -> None:
    with answering(GOOD) as provider:
        result = await ask(provider, provider={"structured_outputs": provider_can}, structured_outputs=model_can)
    [asked] = provider.asked
    assert result.ok and asked.body.get("response_format") == sent
    system, user = asked.body["messages"]
    assert system["role"] == "system" and system["content"].endswith(json.dumps(SCHEMA, separators=(",", ":")))
    assert "JSON" in system["content"] and user["content"] == PROMPT


async def test_an_invalid_schema_costs_nothing(ask: Any) -> None:
    with answering(GOOD) as provider:
        for schema, place in [
            ({"properties": {"a": {"type": "objekt"}}}, "properties/a/type"),
            ({"$ref": "#/$defs/missing"}, "nothing is fetched"),
        ]:
            result = await ask(provider, job(schema=schema))
            assert result.error.code == "bad_request" and place in result.error.message
    assert provider.asked == []


# -- the rung


async def test_only_jobs_with_a_schema_meet_it(pipeline_to: Any, chat_job: Any) -> None:
    async with pipeline_to("http://127.0.0.1:9/v1") as pipeline:
        assert Schema not in rungs(pipeline, chat_job())
        assert Schema not in rungs(pipeline, chat_job(body={"response_format": {"type": "json_object"}}))
        assert Schema in rungs(pipeline, job())


def rungs(pipeline: Pipeline, asked: PromptJob) -> list[type]:
    return [type(rung) for rung in pipeline.ladder(Shape.of(asked)).rungs]


async def test_a_parked_job_goes_on_where_it_was(pipeline_to: Any, free_limits: Any) -> None:
    free_limits.raises = [None, Parked(2e9, "far away")]
    with answering(WRONG, GOOD) as provider:
        async with pipeline_to(provider.base_url, limits=free_limits) as pipeline:
            with pytest.raises(Parked) as parked:
                await pipeline.run(job(repair=1))
            assert (await pipeline.run(job(repair=1), parked=parked.value.memory)).repaired == "asked_again"
    assert "properties/age" in prompts(provider)[1] and len(provider.asked) == 2


async def test_a_parked_job_keeps_its_last_answer(pipeline_to: Any, free_limits: Any) -> None:
    free_limits.raises = [None, Parked(2e9, "far away")]
    with answering(WRONG, Answer(400, {"error": {"message": "no"}})) as provider:
        async with pipeline_to(provider.base_url, limits=free_limits) as pipeline:
            with pytest.raises(Parked) as parked:
                await pipeline.run(job(repair=1))
            result = await pipeline.run(job(repair=1), parked=parked.value.memory)
    assert (result.error.code, result.error.last_answer) == ("bad_request", WRONG)


async def test_the_next_model_is_asked_with_a_schema_of_its_own(ask: Any) -> None:
    models = {
        "m": {"provider": "p", "upstream": "m-1", "fallbacks": ["e"], "price": PRICE},
        "e": {"provider": "p", "upstream": "e-1", "structured_outputs": "json_object", "price": PRICE},
    }
    with answering(WRONG, WRONG, GOOD) as provider:
        providers = {"p": {"base_url": provider.base_url, "api_keys": ["P_KEY"]}}
        catalog = Catalog.model_validate({"providers": providers, "models": models})
        result = await ask(provider, job(repair=1), catalog=catalog)
    assert (result.text, result.answered_by, result.repaired, result.attempts) == (GOOD, "p/e-1", None, 3)
    sent = [(asked.body["model"], asked.body["response_format"]["type"]) for asked in provider.asked]
    assert sent == [("m-1", "json_schema"), ("m-1", "json_schema"), ("e-1", "json_object")]
    assert [attempt.next.partition(":")[0] for attempt in result.failed_attempts] == ["asked_again", "e"]
    assert "properties/age" not in prompts(provider)[2], "another model begins anew"
    assert result.cost_usd == pytest.approx(0.0045)
