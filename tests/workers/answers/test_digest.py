"""Which prompts are equal: a difference in any field, of any type, in the tenant or the model makes another prompt."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from config.catalog import Catalog, Model, Provider
from tests.support.examples import examples
from workers.answers import Digests
from workers.prompt.job import Options, PromptJob
from workers.providers import CODECS, Codec

texts = st.text(max_size=8)
numbers = st.integers(-3, 2**70) | st.floats(-2, 2, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "file"])}, optional={"text": texts}
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
            "content": texts | st.lists(parts),
        },
        optional={
            "name": texts,
            "refusal": texts,
            "tool_call_id": texts,
            "tool_calls": json_values,
            "audio": json_values,
        },
    ),
    min_size=1,
    max_size=3,
)
tools = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": json_values}), max_size=2)
schema = st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": json_values})

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": messages,
    "audio": json_values,
    "frequency_penalty": numbers,
    "function_call": texts | json_values,
    "functions": st.lists(json_values, max_size=2),
    "logit_bias": st.dictionaries(texts, numbers, max_size=2),
    "logprobs": st.booleans(),
    "max_completion_tokens": numbers,
    "max_tokens": numbers,
    "metadata": st.dictionaries(texts, texts, max_size=2),
    "modalities": st.lists(texts, max_size=2),
    "moderation": json_values,
    "n": numbers,
    "parallel_tool_calls": st.booleans(),
    "prediction": json_values,
    "presence_penalty": numbers,
    "prompt_cache_key": texts,
    "prompt_cache_options": json_values,
    "prompt_cache_retention": texts,
    "reasoning_effort": texts,
    "response_format": schema,
    "safety_identifier": texts,
    "seed": numbers,
    "service_tier": texts,
    "stop": texts | st.lists(texts, max_size=2),
    "store": st.booleans(),
    "stream": st.booleans(),
    "stream_options": json_values,
    "temperature": numbers,
    "tool_choice": texts | json_values,
    "tools": tools,
    "top_logprobs": numbers,
    "top_p": numbers,
    "user": texts,
    "verbosity": texts,
    "web_search_options": json_values,
    "a_field_that_nobody_knows": json_values,
}
"""Every field of OpenAI's chat body, as of November 2026, and one of an OpenAI-compatible server."""

CATALOG = Catalog.model_validate(
    {
        "providers": {
            "p": {"base_url": "http://127.0.0.1:9/v1"},
            "q": {"base_url": "http://127.0.0.1:9/v1"},
            "moved": {"base_url": "http://127.0.0.1:8/v1"},
            "asked": {"base_url": "http://127.0.0.1:9/v1", "query": {"api-version": "2"}},
            "told": {"base_url": "http://127.0.0.1:9/v1", "headers": {"x-beta": "1"}},
            "anthropic": {"base_url": "http://127.0.0.1:9/v1", "kind": "anthropic"},
        },
        "models": {
            "unstructured": {"provider": "p", "upstream": "up", "structured_outputs": "none"},
        }
        | {
            name: {"provider": provider, "upstream": upstream}
            for name, provider, upstream in (
                *(("m", "p", "up"), ("alias", "p", "up"), ("other", "p", "another"), ("elsewhere", "q", "up")),
                *(("far", "moved", "up"), ("asked", "asked", "up"), ("told", "told", "up"), ("a", "anthropic", "up")),
            )
        },
    }
)


class Target(NamedTuple):
    """The model that is asked, as a pipeline's route."""

    alias: str
    model: Model
    provider: Provider
    codec: Codec


def digest(body: dict[str, Any], *, model: str = "m", kind: Any = "chat", **options: Any) -> str:
    found = CATALOG.model(model)
    provider = CATALOG.provider(found)
    job = PromptJob("id", kind, model, {"model": model, **body}, Options(**options))
    return Digests().of(job, Target(model, found, provider, CODECS[provider.kind]))


def written(value: Any) -> str:
    """JSON tells 1, 1.0 and true apart, which Python does not."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.promise(30)
@pytest.mark.parametrize("name", sorted(FIELDS))
@settings(max_examples=examples(25))
@given(data=st.data())
def test_bodies_that_differ_in_any_field_never_share(name: str, data: st.DataObject) -> None:
    others = data.draw(st.fixed_dictionaries({"messages": messages}, optional={"seed": numbers, "tools": tools}))
    others.pop(name, None)
    one, another = data.draw(FIELDS[name]), data.draw(FIELDS[name])
    bodies = [{**others, name: one}, others]
    if written(one) != written(another):
        bodies.append({**others, name: another})
    assert len({digest(body) for body in bodies}) == len(bodies)


@pytest.mark.promise(30)
@given(messages, st.text(max_size=12), st.text(max_size=12))
def test_two_tenants_never_share(said: Any, one: str, another: str) -> None:
    assume(one != another)
    # No tenant at all is the same as an empty name, which no job can have.
    body = {"messages": said}
    assert digest(body, tenant=one or None) != digest(body, tenant=another or None)
    assert digest(body, tenant=one or None) == digest(body, tenant=one or None)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values, min_size=1), st.randoms())
def test_the_order_of_a_bodys_fields_does_not_count(body: dict[str, Any], random: Any) -> None:
    shuffled = list(body.items())
    random.shuffle(shuffled)
    assert digest(body) == digest(dict(shuffled))


NUMBERS = [0, -0.0, 0.0, False, "0", None, 1, 1.0, True, "1", [1], {"a": 1}, 2**64, float(2**64), 10**30, "\ud800"]


def test_values_that_python_takes_for_equal_differ() -> None:
    assert len({digest({"x": value}) for value in NUMBERS}) == len(NUMBERS)


def test_a_value_does_not_leak_into_its_neighbours() -> None:
    assert digest({"a": "b", "c": ""}) != digest({"a": 'b","c":"'})
    assert digest({"tools": [], "functions": []}) != digest({"tools": [[], "functions", []]})
    assert digest({}, tenant="a") != digest({}, sample=1)
    assert digest({}, tenant="1 a") != digest({}, tenant="a", sample=1)


def test_schemas_have_an_order() -> None:
    def asked(*names: str) -> dict[str, Any]:
        properties = {name: {"type": "string"} for name in names}
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": properties}}}}

    assert digest(asked("reason", "answer")) != digest(asked("answer", "reason"))
    message, turned = {"role": "user", "content": "x"}, {"content": "x", "role": "user"}
    assert digest({"messages": [message]}) == digest({"messages": [turned]})


def test_the_model_that_is_asked_counts_and_not_its_alias() -> None:
    of = {model: digest({"messages": []}, model=model) for model in CATALOG.models}
    assert of.pop("alias") == of["m"]
    assert len(set(of.values())) == len(of)
    assert digest({"x": 1}, kind="embed") != digest({"x": 1}, kind="chat")


def test_a_codecs_new_version_finds_nothing_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest({"x": 1})
    monkeypatch.setattr(CODECS["openai"], "version", 99)
    assert digest({"x": 1}) != before


def test_each_sample_is_a_prompt_of_its_own() -> None:
    assert len({digest({"x": 1}, sample=number) for number in (0, 1, 2)}) == 3
    assert digest({"x": 1}) == digest({"x": 1}, sample=0)


def test_a_digest_shows_nothing_of_the_prompt_or_the_tenant() -> None:
    shown = digest({"messages": [{"role": "user", "content": "secret"}]}, tenant="acme")
    assert "acme" not in shown and len(shown) == 16 + 1 + 64
    assert set(shown) <= set("0123456789abcdef:")


def test_many_models_take_bounded_memory() -> None:
    digests = Digests()
    found = CATALOG.model("m")
    provider = CATALOG.provider(found)
    for number in range(3_000):
        job = PromptJob("id", "chat", "m", {"model": "m"})
        digests.of(job, Target(f"p/{number}", found, provider, CODECS["openai"]))
    assert len(digests._scopes) <= 1_024
