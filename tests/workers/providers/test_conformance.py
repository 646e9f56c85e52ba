"""One suite for all codecs, and for the simulated provider in each dialect: what a job may rely on whoever answers."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import SecretStr

from config.catalog import Catalog
from tasks.results import Usage
from workers.limiter import Cost, Permit
from workers.limiter.heard.headers import rate_headers
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import CODECS, RawResponse

from .conftest import ONCE
from .outcomes import assert_answer_or_named_failure
from .wires import CLASSIC, WIRES, dialect_of, provider_at

NOW = 1_790_000_000.0
PNG = "data:image/png;base64,iVBORw0KGgo="

each_wire = pytest.mark.parametrize("wire", WIRES)
each_kind = pytest.mark.parametrize("kind", CODECS)


# -- through the pipeline, to a server that speaks it


@each_wire
@pytest.mark.covers("catalog", "providers.kind")
async def test_a_chat_is_answered_in_openais_shape(wire: str, ask: Any, chat_job: Any, key: str) -> None:
    result, simulator = await ask(wire, chat_job(body={"temperature": 0.5, "max_tokens": 50}), api_key=key)
    assert result.ok, result.error
    assert result.response["object"] == "chat.completion"
    choice = result.response["choices"][0]
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", result.text)
    assert choice["finish_reason"] in {"stop", "length"}
    stats = simulator.stats()
    assert stats["calls"] == 1
    assert (stats["prompt_tokens"], stats["completion_tokens"]) == (
        result.usage.input_tokens,
        result.usage.output_tokens,
    )
    assert result.answered_by == "p/upstream-m"


@each_wire
async def test_embeddings_or_a_refusal_that_costs_nothing(wire: str, ask: Any, embed_job: Any, key: str) -> None:
    result, simulator = await ask(wire, embed_job(["a", "b"], dimensions=8), api_key=key)
    if "embeddings" not in dialect_of(wire).apis:
        assert (result.error.code, result.attempts) == ("bad_request", 0)
        assert simulator.stats()["calls"] == 0
    else:
        assert result.ok, result.error
        assert [len(row["embedding"]) for row in result.response["data"]] == [8, 8]


@each_wire
async def test_a_wrong_key_is_named_and_never_shown(
    wire: str, ask: Any, chat_job: Any, key: str, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        result, _ = await ask(wire, chat_job(), api_key="sk-another-0123456789")
    assert (result.error.code, result.error.http_status, result.error.retryable) == ("auth", 401, False)
    assert "P_KEY" in result.error.message
    shown = caplog.text + repr(result) + json.dumps(result.to_dict())
    assert key not in shown
    assert prompt not in caplog.text


async def test_what_is_refused_by_name_waits_for_no_turn(
    pipeline_to: Any, chat_job: Any, free_limits: Any, simulate: Any
) -> None:
    simulator = await simulate(dialect="anthropic")
    table = provider_at(simulator, "anthropic")
    async with pipeline_to(simulator.url, provider=table, limits=free_limits) as pipeline:
        refused = await pipeline.run(chat_job(body={"seed": 7}))
        assert (refused.error.code, refused.error.message.partition(":")[0]) == ("bad_request", "`seed`")
        assert (free_limits.asked, simulator.stats()["calls"]) == ([], 0)
        assert (await pipeline.run(chat_job())).ok
    assert len(free_limits.asked) == 1


REFUSALS = [
    ("400", "bad_request", False),
    ("403", "permission", False),
    ("404", "not_found", False),
    ("408", "timeout", True),
    ("429", "rate_limited", True),
    ("500", "server_error", True),
    ("502-html", "server_error", True),
    ("503", "server_error", True),
    ("529", "server_error", True),
    ("empty", "bad_response", True),
    ("html", "bad_response", True),
    ("null", "bad_response", True),
    ("deep", "bad_response", True),
    ("bad-utf8", "bad_response", True),
    ("redirect", "bad_response", False),
]


@each_wire
@pytest.mark.parametrize(("fault", "code", "retryable"), REFUSALS)
async def test_each_refusal_has_its_code_in_each_dialect(
    wire: str, fault: str, code: str, retryable: bool, ask: Any, chat_job: Any, prompt: str
) -> None:
    result, _ = await ask(wire, chat_job(), faults={fault: 1.0})
    assert (result.error.code, result.error.retryable) == (code, retryable)
    assert prompt not in result.error.message


@each_wire
@pytest.mark.covers("catalog", "providers.headers", "providers.query")
async def test_headers_and_query_of_the_catalogue_arrive(wire: str, ask: Any, chat_job: Any) -> None:
    """`x-simulate` asks the simulated provider for a fault."""
    result, _ = await ask(wire, chat_job(), provider={"headers": {"x-simulate": "503"}})
    assert result.error.http_status == 503


LIMITS: dict[str, set[str]] = {
    "openai": {"rpm", "tpm"},
    "azure": set(),
    CLASSIC: set(),
    "anthropic": {"rpm", "tpm"},
    "groq": {"tpm"},
    "mistral": {"rpm", "tpm"},
}


@each_wire
async def test_the_headers_that_tell_limits_are_read(wire: str, simulate: Any, pipeline_to: Any, chat_job: Any) -> None:
    simulator = await simulate(dialect=dialect_of(wire).name, rpm=120, tpm=90_000, algorithm="sliding")
    seen: list[CIMultiDict[str]] = []
    limits = _Observer(seen)
    table = provider_at(simulator, wire)
    async with pipeline_to(simulator.url, provider=table, retry=ONCE, limits=limits) as pipeline:
        assert (await pipeline.run(chat_job())).ok
    told = {header.tells: header.limit for header in rate_headers(seen[0], NOW) if header.tells in {"rpm", "tpm"}}
    stated = {"rpm": 120, "tpm": 90_000}
    assert told == {name: stated[name] for name in LIMITS.get(wire, ())}
    assert wire in LIMITS or not told, "a provider that tells no limits is not believed to"


@each_wire
async def test_over_the_limit_is_told_apart(wire: str, simulate: Any, pipeline_to: Any, chat_job: Any) -> None:
    simulator = await simulate(dialect=dialect_of(wire).name, rpm=1, algorithm="fixed", latency_ms=0)
    table = provider_at(simulator, wire)
    async with pipeline_to(simulator.url, provider=table, retry=ONCE) as pipeline:
        first, second = [await pipeline.run(chat_job()) for _ in range(2)]
    assert first.ok
    assert (second.error.code, second.error.http_status) == ("rate_limited", 429)


@each_wire
async def test_pictures_are_passed_on(wire: str, ask: Any, chat_job: Any, key: str) -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PNG}}]
    result, _ = await ask(wire, chat_job(body={"messages": [{"role": "user", "content": parts}]}), api_key=key)
    assert result.ok, result.error


@each_wire
async def test_no_field_of_ours_is_in_the_body(wire: str, raw_server: Any, pipeline_to: Any, chat_job: Any) -> None:
    """Mistral, for one, refuses a body with a field that it does not know."""
    server = await raw_server()
    codec = CODECS[dialect_of(wire).kind]
    catalog = catalog_of(wire, server.url)
    job = chat_job(tenant="t", metadata={"a": 1}, max_attempts=2)
    request = codec.request(job, model=catalog.model("m"), provider=catalog.providers["p"], key=None)
    assert json.loads(request.body).keys() <= {"model", "messages", "max_tokens"}


class _Observer:
    """Admits everything, and keeps the headers of the answers."""

    def __init__(self, seen: list[CIMultiDict[str]]) -> None:
        self._seen = seen

    def admit_free(self, *_: Any, **__: Any) -> Any:
        return Permit(self, Cost(), epoch=0)  # type: ignore[arg-type]

    def observe(self, headers: Any) -> None:
        self._seen.append(CIMultiDict(headers))

    def settle(self, *_: Any) -> None:
        pass

    def give_up(self, *_: Any) -> None:
        pass

    def give_back(self, *_: Any) -> None:
        pass


# -- by the codec alone


def catalog_of(wire: str, url: str = "https://host/v1") -> Catalog:
    provider: dict[str, Any] = {"base_url": url, "kind": dialect_of(wire).kind if wire in WIRES else wire}
    if provider["kind"] == "azure":
        provider["query"] = {"api-version": "2024-10-21"}
    return Catalog.model_validate({"providers": {"p": provider}, "models": {"m": {"provider": "p"}}})


def request_of(kind: str, job: PromptJob, key: str = "sk-canary-1") -> Any:
    catalog = catalog_of(kind)
    provider = catalog.providers["p"]
    return CODECS[kind].request(job, model=catalog.model("m"), provider=provider, key=SecretStr(key))


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
QUESTION = {"role": "user", "content": "Rain in Cologne? canary"}
OPENAIS_CALL = {
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
}
ANTHROPICS_CALL = {
    "id": "msg_1",
    "type": "message",
    "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Köln"}}],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 9, "output_tokens": 4},
}
CALLS = {"openai": OPENAIS_CALL, "azure": OPENAIS_CALL, "anthropic": ANTHROPICS_CALL}


def raw(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> RawResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawResponse(status, CIMultiDict(headers or {}), data)


@each_kind
def test_tools_make_the_round_trip(kind: str) -> None:
    asked = PromptJob("j", "chat", "m", {"model": "m", "messages": [QUESTION], "tools": TOOLS})
    assert b"weather" in request_of(kind, asked).body
    answer = CODECS[kind].response(asked, raw(CALLS[kind]), now=NOW)
    choice = answer.response["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["id"], call["function"]["name"]) == ("tool_calls", "c1", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
    assert answer.usage == Usage(9, 4)
    turns = [QUESTION, choice["message"], {"role": "tool", "tool_call_id": "c1", "content": "yes"}]
    sent = json.loads(
        request_of(kind, PromptJob("j", "chat", "m", {"model": "m", "messages": turns, "tools": TOOLS})).body
    )
    assert len(sent["messages"]) == 3
    assert json.dumps(sent["messages"], ensure_ascii=False).count("Köln") == 1


@each_kind
def test_neither_key_nor_prompt_shows(kind: str) -> None:
    job = PromptJob("j", "chat", "m", {"model": "m", "messages": [QUESTION]})
    request = request_of(kind, job)
    assert any("sk-canary-1" in value for value in request.headers.values())
    probe = CODECS[kind].probe(catalog_of(kind).providers["p"], SecretStr("sk-canary-1"))
    assert any("sk-canary-1" in value for value in probe.headers.values())
    assert "canary" not in repr(job) + repr(request) + repr(probe) + repr(raw(b"canary", headers={"a": "canary"}))


ANSWERS_WORDS = [
    *("choices", "message", "content", "error", "type", "text", "stop_reason", "usage", "input_tokens", "role"),
    *("tool_calls", "function", "arguments", "id", "image_url", "url", "provider_fields"),
]
REQUESTS_WORDS = [
    *("temperature", "max_tokens", "stop", "tools", "tool_choice", "response_format", "metadata", "user", "n", "seed"),
    *("reasoning_effort", "service_tier", "thinking", "output_config", "logit_bias", "parallel_tool_calls", "x_own"),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(ANSWERS_WORDS) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
bodies = st.binary() | json_values.map(lambda value: json.dumps(value).encode())


@each_kind
@given(status=st.integers(100, 999), body=bodies)
def test_whatever_comes_back_is_an_answer_or_a_named_failure(kind: str, status: int, body: bytes) -> None:
    job = PromptJob("j", "chat", "m", {"model": "m", "messages": [QUESTION]})
    assert_answer_or_named_failure(lambda: CODECS[kind].response(job, raw(body, status), now=NOW), status=status)


fields_of_requests = st.dictionaries(st.sampled_from(REQUESTS_WORDS), json_values, max_size=4)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "other"]), "content": json_values},
        optional={"tool_calls": json_values, "tool_call_id": json_values, "provider_fields": json_values},
    ),
    max_size=3,
)


@each_kind
@given(
    messages=messages | json_values, fields=st.dictionaries(st.sampled_from(REQUESTS_WORDS), json_values, max_size=4)
)
def test_whatever_is_asked_is_sent_or_refused_before(kind: str, messages: Any, fields: dict[str, Any]) -> None:
    """`check` and `request` agree, neither changes the job, and what is sent is JSON."""
    body = {"model": "m", "messages": messages, **fields}
    job = PromptJob("j", "chat", "m", body)
    before = repr(body)
    refusals = [
        _refusal(lambda: CODECS[kind].check(job, model=catalog_of(kind).model("m"))),
        _refusal(lambda: request_of(kind, job)),
    ]
    assert repr(body) == before
    checked, sent = refusals
    assert checked is None or (checked == sent and checked.startswith("`"))
    if sent is None:
        json.loads(request_of(kind, job).body)


def _refusal(action: Any) -> str | None:
    try:
        action()
    except Failure as refused:
        assert refused.code == "bad_request"
        return refused.message
    return None
