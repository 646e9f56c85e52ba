"""Anthropic's Messages API for callers of OpenAI's chat, without a socket."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from multidict import CIMultiDict
from pydantic import SecretStr

from config.catalog import Catalog, Model
from tasks.results import Usage
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import Answer, ProviderRequest, RawResponse
from workers.providers.anthropic import AnthropicCodec

CODEC = AnthropicCodec()
NOW = 1_790_000_000.0
QUESTION = {"role": "user", "content": "How many clips?"}
PNG = "data:image/png;base64,iVBORw0KGgo="


def chat(*messages: dict[str, Any], **fields: Any) -> PromptJob:
    return PromptJob("job-1", "chat", "m", {"model": "m", "messages": list(messages) or [QUESTION], **fields})


def sent(job: PromptJob, *, upstream: str = "claude-sonnet-4-6", key: str | None = "sk-ant-1", **provider: Any) -> Any:
    return json.loads(request(job, upstream=upstream, key=key, **provider).body)


def request(
    job: PromptJob, *, upstream: str = "claude-sonnet-4-6", key: str | None = "sk-ant-1", **provider: Any
) -> ProviderRequest:
    tables = {
        "providers": {"p": {"base_url": "https://api.anthropic.com/v1", "kind": "anthropic", **provider}},
        "models": {"m": {"provider": "p", "upstream": upstream}},
    }
    catalog = Catalog.model_validate(tables)
    secret = None if key is None else SecretStr(key)
    return CODEC.request(job, model=catalog.model("m"), provider=catalog.providers["p"], key=secret)


def check(job: PromptJob, *, upstream: str = "claude-sonnet-4-6") -> None:
    CODEC.check(job, model=Model(name="m", provider="p", upstream=upstream))


def message(*content: dict[str, Any], stop_reason: str = "end_turn", **fields: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 4},
        **fields,
    }


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def raw(body: Any, *, status: int = 200, **headers: str) -> RawResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawResponse(status, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), data)


def answer(body: Any) -> Answer:
    return CODEC.response(chat(), raw(body), now=NOW)


def failure(response: RawResponse) -> Failure:
    with pytest.raises(Failure) as caught:
        CODEC.response(chat(), response, now=NOW)
    return caught.value


# -- the request


def test_a_plain_question() -> None:
    found = request(chat(temperature=0.5, top_p=0.9, max_completion_tokens=50))
    assert found.url == "https://api.anthropic.com/v1/messages"
    assert found.headers == {
        "anthropic-version": "2023-06-01",
        "Content-Type": "application/json",
        "x-promptmill-job-id": "job-1",
        "x-api-key": "sk-ant-1",
    }
    assert json.loads(found.body) == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 50,
        "messages": [QUESTION],
        "temperature": 0.5,
        "top_p": 0.9,
    }


def test_max_tokens_has_a_default_because_the_api_wants_it() -> None:
    assert sent(chat())["max_tokens"] == 8_192


@pytest.mark.covers("catalog", "providers.headers")
def test_the_catalogue_may_name_another_version() -> None:
    found = request(chat(), headers={"anthropic-version": "2026-10-21", "anthropic-beta": "x"})
    assert (found.headers["anthropic-version"], found.headers["anthropic-beta"]) == ("2026-10-21", "x")


@pytest.mark.covers("catalog", "providers.auth")
def test_a_gateways_token_is_a_bearer_token() -> None:
    headers = request(chat(), auth="bearer").headers
    assert headers["Authorization"] == "Bearer sk-ant-1"
    assert "x-api-key" not in headers


def test_system_messages_stand_before_the_turns() -> None:
    one = sent(chat({"role": "system", "content": "Be brief."}, QUESTION))
    assert (one["system"], one["messages"]) == ("Be brief.", [QUESTION])
    two = sent(chat({"role": "developer", "content": "a"}, QUESTION, {"role": "system", "content": [text("b")]}))
    assert two["system"] == [text("a"), text("b")]


def test_cache_control_passes() -> None:
    marker = {"type": "ephemeral", "ttl": "1h"}
    part = {**text("long"), "cache_control": marker}
    found = sent(
        chat(
            {"role": "system", "content": [part]},
            {**QUESTION, "cache_control": marker},
            tools=[{"type": "function", "function": {"name": "f"}, "cache_control": marker}],
        )
    )
    assert found["system"] == [part]
    assert found["messages"][0]["content"] == [{**text("How many clips?"), "cache_control": marker}]
    assert found["tools"][0]["cache_control"] == marker


def test_pictures_and_documents() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,w6TDtg=="}},
        {"type": "file", "file": {"file_id": "file_1"}},
    ]
    assert sent(chat({"role": "user", "content": parts}))["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "äö"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    ]


def test_tools_and_the_choice_among_them() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "d", "parameters": schema, "strict": True}
    found = sent(
        chat(
            tools=[{"type": "function", "function": function}, {"type": "web_search_20250305", "name": "web_search"}],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=False,
        )
    )
    assert found["tools"] == [
        {"name": "weather", "description": "d", "strict": True, "input_schema": schema},
        {"type": "web_search_20250305", "name": "web_search"},
    ]
    assert found["tool_choice"] == {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("asked", "choice"),
    [("auto", {"type": "auto"}), ("required", {"type": "any"}), ("none", {"type": "none"})],
)
def test_each_tool_choice(asked: str, choice: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert sent(chat(tools=tools, tool_choice=asked))["tool_choice"] == choice
    alone = sent(chat(tools=tools, parallel_tool_calls=False))
    assert alone["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert "tool_choice" not in sent(chat(tools=tools, parallel_tool_calls=True))


def test_results_of_parallel_calls_are_one_turn() -> None:
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": json.dumps({"n": n})}}
        for n in (1, 2)
    ]
    results = [{"role": "tool", "tool_call_id": f"call_{n}", "content": str(n)} for n in (1, 2)]
    found = sent(chat(QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}, *results, QUESTION))
    assert found["messages"] == [
        QUESTION,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": f"call_{n}", "name": "f", "input": {"n": n}} for n in (1, 2)],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": f"call_{n}", "content": str(n)} for n in (1, 2)],
        },
        QUESTION,
    ]


def test_a_result_after_an_empty_turn_is_a_turn_of_its_own() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    turns = sent(chat({"role": "user", "content": []}, result, result))["messages"]
    assert [len(turn["content"]) for turn in turns] == [0, 2]


def test_stop_user_tier_and_format() -> None:
    schema = {"type": "object"}
    found = sent(
        chat(
            stop="END",
            user="u-1",
            service_tier="default",
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        )
    )
    assert found["stop_sequences"] == ["END"]
    assert found["metadata"] == {"user_id": "u-1"}
    assert found["service_tier"] == "standard_only"
    closed = {**schema, "additionalProperties": False}
    assert found["output_config"] == {"format": {"type": "json_schema", "schema": closed}}


def test_a_schema_says_in_words_what_the_api_refuses() -> None:
    age = {"type": "integer", "minimum": 0, "maximum": 120, "description": "In years."}
    tags = {"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 1}
    pairs = {"type": "array", "minItems": 2, "prefixItems": [{}]}
    schema = {"properties": {"age": age, "maximum": tags, "pairs": pairs}, "$defs": {"map": {"type": "object"}}}
    before = copy.deepcopy(schema)
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    made = sent(chat(response_format=wanted))["output_config"]["format"]["schema"]
    assert made == {
        "properties": {
            "age": {"type": "integer", "description": "In years. (minimum: 0, maximum: 120)"},
            "maximum": {
                "type": "array",
                "items": {"type": "string", "description": "(maxLength: 9)"},
                "minItems": 1,
            },
            "pairs": {"type": "array", "prefixItems": [{}], "description": "(minItems: 2)"},
        },
        "$defs": {"map": {"type": "object", "additionalProperties": False}},
        "additionalProperties": False,
    }
    assert schema == before


def test_fields_that_say_nothing_and_anthropics_own() -> None:
    found = sent(
        chat(
            n=1,
            logprobs=False,
            logit_bias=None,
            frequency_penalty=0,
            presence_penalty=0.0,
            store=False,
            modalities=["text"],
            response_format={"type": "text"},
            stream=True,
            stream_options={"include_usage": True},
            seed=None,
            top_k=5,
        )
    )
    assert found.keys() == {"model", "max_tokens", "messages", "top_k"}


@pytest.mark.parametrize(
    ("upstream", "effort", "fields"),
    [
        ("claude-sonnet-4-6", "high", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ("claude-fable-5", "minimal", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ("claude-opus-4-7", "xhigh", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}),
        ("anthropic/claude-opus-5-5", "max", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}),
        ("claude-haiku-4-5-20251001", "low", {"thinking": {"type": "enabled", "budget_tokens": 1_024}}),
        ("claude-3-7-sonnet-20250219", "high", {"thinking": {"type": "enabled", "budget_tokens": 4_096}}),
        ("claude-haiku-4-5-20251001", "none", {}),
        ("claude-opus-5", "none", {"thinking": {"type": "disabled"}}),
    ],
)
def test_effort_is_said_in_the_words_of_the_models_generation(
    upstream: str, effort: str, fields: dict[str, Any]
) -> None:
    found = sent(chat(reasoning_effort=effort), upstream=upstream)
    assert {name: found[name] for name in ("thinking", "output_config") if name in found} == fields


def test_a_budget_leaves_room_for_the_answer() -> None:
    old = "claude-sonnet-4-5"
    assert sent(chat(reasoning_effort="high"), upstream=old)["max_tokens"] == 8_192 + 4_096
    tight = sent(chat(reasoning_effort="high", max_tokens=2_000), upstream=old)
    assert (tight["max_tokens"], tight["thinking"]["budget_tokens"]) == (2_000, 1_999)
    with pytest.raises(Failure, match=r"`reasoning_effort`.*max_tokens"):
        sent(chat(reasoning_effort="low", max_tokens=1_000), upstream=old)


def test_anthropics_own_thinking_overrides_the_effort() -> None:
    found = sent(chat(thinking={"type": "enabled", "budget_tokens": 2_000}, reasoning_effort="high"))
    assert found["thinking"] == {"type": "enabled", "budget_tokens": 2_000}
    assert "output_config" not in found


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"seed": 7}, "seed"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"store": True}, "store"),
        ({"functions": []}, "functions"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": " "}, "stop"),
        ({"metadata": {"run": "7"}}, "metadata"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "canary"}, "reasoning_effort"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": {}, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": {}}]}, "tools[0]"),
        ({"tool_choice": {"type": []}}, "tool_choice"),
        ({"response_format": {"type": {}}}, "response_format"),
        ({"service_tier": []}, "service_tier"),
        ({"reasoning_effort": {}}, "reasoning_effort"),
        ({"messages": [{**QUESTION, "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "canary"}}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "data:a/b;base64,"}}]}]},
            "messages[0].content[0].file.file_data",
        ),
        ({"messages": [QUESTION, {"role": "assistant", "audio": {"id": "a"}}]}, "messages[1].audio"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": "canary"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    job = PromptJob("j", "chat", "m", {"model": "m", "messages": [QUESTION], **fields})
    with pytest.raises(Failure) as caught:
        check(job)
    assert (caught.value.code, caught.value.retryable) == ("bad_request", False)
    assert caught.value.message.startswith(f"`{named}`: ")
    assert "canary" not in caught.value.message


def test_embeddings_are_refused() -> None:
    with pytest.raises(Failure, match="no embeddings"):
        check(PromptJob("j", "embed", "m", {"model": "m", "input": "x"}))


def test_what_a_generation_takes_is_told_by_its_own_name() -> None:
    """The name that jobs use may show another generation, or none."""
    for alias in ("m", "claude-opus-4-8"):
        job = PromptJob("j", "chat", alias, {"model": alias, "messages": [QUESTION], "reasoning_effort": "xhigh"})
        check(job, upstream="claude-sonnet-4-6")
        with pytest.raises(Failure, match="reasoning_effort"):
            check(job, upstream="claude-3-7-sonnet-20250219")


# -- answers


def test_an_answer_has_openais_shape() -> None:
    found = answer(message(text("24 "), text("clips")))
    assert found.text == "24 clips"
    assert found.usage == Usage(input_tokens=9, output_tokens=4)
    body = dict(found.response)
    assert body.pop("provider_fields") == {
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 4},
    }
    assert body == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": int(NOW),
        "model": "claude-sonnet-4-6",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "24 clips", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_cached_tokens_are_part_of_the_input_here() -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 1_000,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
    }
    found = answer(message(text("x"), usage=usage))
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.cached_tokens, found.usage.output_tokens) == (1_110, 100, 5)
    assert found.response["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_each_stop_reason(stop_reason: str, finish_reason: str) -> None:
    found = answer(message(text("half"), stop_reason=stop_reason))
    assert found.response["choices"][0]["finish_reason"] == finish_reason
    assert found.response["provider_fields"]["stop_reason"] == stop_reason


def test_a_refusal_without_a_word_is_the_content_filters() -> None:
    found = failure(raw(message(stop_reason="refusal", stop_details={"type": "refusal", "explanation": "secret"})))
    assert (found.code, found.retryable) == ("content_filter", False)
    assert "secret" not in found.message


def test_tokens_spent_on_thinking_alone_are_not_spent_again() -> None:
    found = failure(raw(message({"type": "thinking", "thinking": "", "signature": "s"}, stop_reason="max_tokens")))
    assert (found.code, found.retryable) == ("bad_response", False)


def test_tool_calls_and_signed_thinking_make_the_round_trip() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "sig=="},
        {"type": "redacted_thinking", "data": "opaque"},
        text("Let me look."),
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
    ]
    found = answer(message(*blocks, stop_reason="tool_use"))
    said = found.response["choices"][0]["message"]
    assert said["content"] == "Let me look."
    [call] = said["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == ("toolu_1", "function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}

    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    turns = sent(chat(QUESTION, said, result))["messages"]
    assert turns[1] == {"role": "assistant", "content": blocks}
    assert turns[2]["content"] == [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}]


def test_without_thinking_the_next_turn_has_openais_fields() -> None:
    said = answer(message(text("Yes."))).response["choices"][0]["message"]
    assert "provider_fields" not in said
    assert sent(chat(QUESTION, said, QUESTION))["messages"][1] == {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        {"type": "error", "error": {"type": "api_error", "message": "m"}},
        {"content": None},
        {"content": ["x"]},
        {"content": [{"type": {}}], "stop_reason": []},
        message(),
        message(text("")),
        {"choices": [{"message": {"content": "OpenAI's"}}]},
    ],
)
def test_a_200_that_is_no_answer(body: Any) -> None:
    found = failure(raw(body, request_id="req_7"))
    assert (found.code, found.http_status, found.request_id) == ("bad_response", 200, "req_7")


@pytest.mark.parametrize(
    ("status", "kind", "code", "retryable"),
    [
        (400, "invalid_request_error", "bad_request", False),
        (401, "authentication_error", "auth", False),
        (402, "billing_error", "quota_exhausted", False),
        (403, "permission_error", "permission", False),
        (404, "not_found_error", "not_found", False),
        (413, "request_too_large", "too_large", False),
        (429, "rate_limit_error", "rate_limited", True),
        (500, "api_error", "server_error", True),
        (504, "timeout_error", "server_error", True),
        (529, "overloaded_error", "server_error", True),
    ],
)
def test_each_error_type(status: int, kind: str, code: str, retryable: bool) -> None:
    body = {"type": "error", "error": {"type": kind, "message": "secret words"}, "request_id": "req_1"}
    found = failure(raw(body, status=status, request_id="req_1"))
    assert (found.code, found.retryable, found.http_status, found.request_id) == (code, retryable, status, "req_1")
    assert "secret words" not in found.message


def test_neither_key_nor_prompt_shows_in_a_repr() -> None:
    job = chat({"role": "user", "content": "canary"})
    probe = CODEC.probe(provider_of(), SecretStr("sk-ant-1"))
    assert probe.headers["x-api-key"] == "sk-ant-1"
    shown = repr(request(job)) + repr(probe) + repr(answer(message(text("canary"))))
    assert "sk-ant-1" not in shown
    assert "canary" not in shown


def provider_of() -> Any:
    tables = {"providers": {"p": {"base_url": "https://api.anthropic.com/v1", "kind": "anthropic"}}}
    return Catalog.model_validate(tables).providers["p"]
