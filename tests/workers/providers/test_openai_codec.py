"""The OpenAI-compatible codec, without a socket."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import SecretStr

from tasks.results import Usage
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import Answer, ProviderRequest, RawResponse
from workers.providers.openai import OpenAICodec

from .outcomes import assert_answer_or_named_failure

CODEC = OpenAICodec()
CHAT = PromptJob("job-1", "chat", "m", {"model": "m", "messages": [{"role": "user", "content": "canary"}]})
NOW = 1_767_225_600.0


def embed(value: Any) -> PromptJob:
    return PromptJob("job-e", "embed", "e", {"model": "e", "input": value})


def request(catalog_at: Any, job: PromptJob, *, key: str | None = "sk-1") -> ProviderRequest:
    catalog = catalog_at("https://host/v1/")
    model = catalog.model(job.model)
    secret = None if key is None else SecretStr(key)
    return CODEC.request(job, model=model, provider=catalog.provider(model), key=secret)


def raw(status: int, body: Any, **headers: str) -> RawResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawResponse(status, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), data)


def answer(body: Any, job: PromptJob = CHAT) -> Answer:
    return CODEC.response(job, raw(200, body), now=NOW)


def failure(response: RawResponse, job: PromptJob = CHAT) -> Failure:
    with pytest.raises(Failure) as caught:
        CODEC.response(job, response, now=NOW)
    return caught.value


def completion(message: Any = None, *, finish_reason: str = "stop", **rest: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "24 clips"} if message is None else message
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **rest}


# -- request


def test_only_the_models_name_changes(catalog_at: Any) -> None:
    body = {
        **CHAT.body,
        "temperature": 0.1 + 0.2,
        "seed": 2**70,
        "metadata": {"__type__": "datetime", "ключ": "значение"},
        "x_vendor": [None, True, -0.0],
    }
    sent = request(catalog_at, PromptJob("job-1", "chat", "m", body))
    assert json.loads(sent.body) == {**body, "model": "upstream-m"}
    assert sent.url == "https://host/v1/chat/completions"
    assert sent.headers == {
        "Content-Type": "application/json",
        "x-promptmill-job-id": "job-1",
        "Authorization": "Bearer sk-1",
    }


def test_the_job_is_not_changed(catalog_at: Any) -> None:
    before = json.dumps(CHAT.body)
    request(catalog_at, CHAT)
    assert json.dumps(CHAT.body) == before


def test_streaming_is_left_out_as_answers_are_delivered_whole(catalog_at: Any) -> None:
    body = {**CHAT.body, "stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(request(catalog_at, PromptJob("j", "chat", "m", body)).body).keys() == {"model", "messages"}


def test_embeddings_have_their_own_path(catalog_at: Any) -> None:
    sent = request(catalog_at, embed(["a", "b"]), key=None)
    assert sent.url == "https://host/v1/embeddings"
    assert json.loads(sent.body) == {"model": "upstream-e", "input": ["a", "b"]}
    assert "Authorization" not in sent.headers


@pytest.mark.parametrize("job_id", ["a\r\nX-Evil: 1", "ключ", "a\x00b"])
def test_any_job_id_makes_a_legal_header(catalog_at: Any, job_id: str) -> None:
    header = request(catalog_at, PromptJob(job_id, "chat", "m", CHAT.body)).headers["x-promptmill-job-id"]
    assert header.isascii()
    assert header.isprintable()


def test_a_body_that_is_no_json_is_a_bad_request(catalog_at: Any) -> None:
    deep: Any = "x"
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(Failure, match="can't be written"):
        request(catalog_at, PromptJob("j", "chat", "m", {**CHAT.body, "deep": deep}))


def test_neither_key_nor_prompt_shows_in_a_repr(catalog_at: Any) -> None:
    text = repr(request(catalog_at, CHAT, key="sk-secret")) + repr(answer(completion({"content": "canary"})))
    text += repr(raw(200, b"canary", authorization="canary"))
    assert "sk-secret" not in text
    assert "canary" not in text


# -- answers


def test_a_chat_answer() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    body = completion(usage=usage, id="chatcmpl-1")
    assert answer(body) == Answer("24 clips", body, Usage(input_tokens=9, output_tokens=4, cached_tokens=3))


def test_deepseeks_cached_tokens() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 8}
    assert answer(completion(usage=usage)).usage == Usage(9, 4, 8)


@pytest.mark.parametrize(
    "usage", [None, [], {}, {"prompt_tokens": -1}, {"prompt_tokens": "9"}, {"prompt_tokens": True}, {"total": 9}]
)
def test_what_was_not_counted_is_unknown(usage: Any) -> None:
    assert answer(completion(usage=usage)).usage is None


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "tool_calls": [{"id": "1"}]}, None),
        ({"content": "", "function_call": {"name": "f"}}, None),
        ({"content": None, "refusal": "I can't help with that."}, None),
        ({"content": None, "audio": {"id": "a"}}, None),
        ({"content": [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}, 7, {}]}, "two parts"),
        ({"content": "\x00 is text"}, "\x00 is text"),
    ],
)
def test_answers_of_other_shapes(message: Any, text: str | None) -> None:
    assert answer(completion(message)).text == text


def test_a_partly_filtered_answer_is_an_answer() -> None:
    assert answer(completion({"content": "half"}, finish_reason="content_filter")).text == "half"


NOT_ANSWERS = {
    "empty": b"",
    "blank": b"  \n",
    "null": b"null",
    "array": b"[]",
    "number": b"7",
    "string": b'"hello"',
    "html": b"<!DOCTYPE html><html></html>",
    "cut": b'{"choices": [{"mess',
    "nan": b'{"choices": [{"message": {"content": "x"}, "index": NaN}]}',
    "invalid-utf8": b'{"choices": [{"message": {"content": "\xff"}}]}',
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "deep-object": b'{"a":' * 200_000,
    "deep-but-parsable": b'{"choices": [{"message": {"content": "x"}}], "x": ' + b"[" * 300 + b"]" * 300 + b"}",
    "error": {"error": {"message": "upstream failed"}},
    "no-choices": {"id": "x"},
    "null-choices": {"choices": None},
    "empty-choices": {"choices": []},
    "odd-choices": {"choices": ["x"]},
    "no-message": {"choices": [{}]},
    "null-message": {"choices": [{"message": None}]},
    "null-content": completion({"content": None}),
    "empty-content": completion({"content": ""}),
    "numeric-content": completion({"content": 7}),
    "empty-parts": completion({"content": [{}]}),
    "empty-tools": completion({"content": None, "tool_calls": []}),
}


@pytest.mark.promise(19)
@pytest.mark.parametrize("name", NOT_ANSWERS)
def test_a_200_that_is_no_answer_is_a_retryable_bad_response(name: str) -> None:
    found = failure(raw(200, NOT_ANSWERS[name], x_request_id="req_7"))
    assert (found.code, found.retryable, found.http_status) == ("bad_response", True, 200)
    assert found.request_id == "req_7"
    assert len(found.provider_body or "") <= 4_096


def test_many_brackets_alone_are_not_deep() -> None:
    assert answer(completion({"content": "{[" * 300})).text


@pytest.mark.promise(19)
def test_html_says_where_to_look() -> None:
    assert "base_url" in failure(raw(200, b"<html>")).message


def test_an_answer_that_was_filtered_away() -> None:
    found = failure(raw(200, completion({"content": None}, finish_reason="content_filter")))
    assert (found.code, found.retryable) == ("content_filter", False)


def test_a_model_that_spent_all_on_reasoning_is_not_asked_again() -> None:
    found = failure(raw(200, completion({"content": ""}, finish_reason="length")))
    assert (found.code, found.retryable) == ("bad_response", False)
    assert "max_tokens" in found.message


# -- embeddings


def vectors(*rows: Any) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": vector} for index, vector in rows], "usage": {"prompt_tokens": 5}}


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("one text", vectors((0, [0.1, -2]))),
        (["a", "b"], vectors((1, [0.3]), (0, [0.1]))),
        ([5, 6, 7], vectors((0, [0.1]))),
        ([[5, 6], [7]], vectors((0, [0.1]), (1, [0.2]))),
        ("packed", vectors((0, packed(0.5, 1.5)))),
    ],
)
def test_an_embedding_for_each_input(value: Any, body: Any) -> None:
    found = answer(body, embed(value))
    assert (found.text, found.response, found.usage) == (None, body, Usage(input_tokens=5))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": None},
        vectors((0, [0.1])),
        vectors((0, [0.1]), (1, [0.2]), (2, [0.3])),
        vectors((0, [0.1]), (0, [0.2])),
        vectors((0, [0.1]), (2, [0.2])),
        vectors((0, [0.1]), (None, [0.2])),
        vectors((0, [0.1]), (True, [0.2])),
        vectors((0, [0.1]), (1, [0.2, 0.3])),
        vectors((0, []), (1, [])),
        vectors((0, [0.1]), (1, [None])),
        vectors((0, [0.1]), (1, ["0.2"])),
        vectors((0, [0.1]), (1, [True])),
        vectors((0, [0.1]), (1, None)),
        vectors((0, packed(0.1)), (1, "no base64!")),
        vectors((0, packed(0.1)), (1, "AAA=")),
        vectors((0, packed(0.1)), (1, packed(float("nan")))),
        {"data": ["x", "y"]},
    ],
)
def test_a_vector_is_never_made_up(body: Any) -> None:
    found = failure(raw(200, body), embed(["a", "b"]))
    assert (found.code, found.retryable) == ("bad_response", True)


# -- refusals


def error(kind: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": "secret words of the provider", "type": kind, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable"),
    [
        (400, error("invalid_request_error"), "bad_request", False),
        (400, error("invalid_request_error", "context_length_exceeded"), "too_large", False),
        (400, error("invalid_request_error", "content_policy_violation"), "content_filter", False),
        (400, error(code="content_filter"), "content_filter", False),
        (401, error(code="invalid_api_key"), "auth", False),
        (401, b"", "auth", False),
        (402, b"", "quota_exhausted", False),
        (403, error(), "permission", False),
        (403, error(code="insufficient_user_quota"), "quota_exhausted", False),
        (404, error(code="model_not_found"), "not_found", False),
        (405, b"", "bad_request", False),
        (408, b"", "timeout", True),
        (409, b"", "server_error", True),
        (413, b"<html>", "too_large", False),
        (418, b"\xff", "bad_request", False),
        (422, {"detail": [{"loc": ["body"]}]}, "bad_request", False),
        (429, b"", "rate_limited", True),
        (429, error("requests", "rate_limit_exceeded"), "rate_limited", True),
        (429, error("insufficient_quota", "insufficient_quota"), "quota_exhausted", False),
        (429, error("insufficient_quota"), "quota_exhausted", False),
        (500, error("server_error"), "server_error", True),
        (501, b"", "server_error", False),
        (502, b"<html>", "server_error", True),
        (503, b"<html>", "server_error", True),
        (504, b"", "server_error", True),
        (529, {"type": "error", "error": {"type": "overloaded_error"}}, "server_error", True),
        (599, b"", "server_error", True),
    ],
)
def test_each_refusal_has_its_code(status: int, body: Any, code: str, retryable: bool) -> None:
    found = failure(raw(status, body, request_id="req_1"))
    assert (found.code, found.retryable, found.http_status, found.request_id) == (code, retryable, status, "req_1")
    assert str(status) in found.message


def test_a_refusals_text_has_the_providers_names_not_its_words() -> None:
    found = failure(raw(400, error("invalid_request_error", "unknown_parameter")))
    assert found.message.endswith("(400, unknown_parameter, invalid_request_error)")
    assert found.provider_body is not None
    assert "secret words" in found.provider_body


def test_a_sentence_in_the_place_of_a_name_is_not_repeated() -> None:
    assert "canary" not in failure(raw(400, error("the canary prompt", "x" * 65 + "canary"))).message


def test_the_wait_that_the_provider_asks_for_is_kept() -> None:
    assert failure(raw(429, b"", Retry_After="7")).retry_after_s == 7.0
    assert failure(raw(503, b"", retry_after_ms="70")).retry_after_s == 0.07


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://elsewhere.example/v1?key=sk-1", "https://elsewhere.example;"),
        ("/login", "another path;"),
        ("", "another path;"),
        ("http://[", "an unreadable address;"),
    ],
)
def test_a_redirect_names_its_target_but_no_query(location: str, says: str) -> None:
    found = failure(raw(302, b"", location=location))
    assert (found.code, found.retryable) == ("bad_response", False)
    assert says in found.message
    assert "sk-1" not in found.message


def test_the_providers_body_is_cut() -> None:
    assert len(failure(raw(500, b"x" * 100_000)).provider_body or "") == 4_096


# -- properties

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "error", "data", "index", "embedding", "usage", "code"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
bodies = st.binary() | json_values.map(lambda value: json.dumps(value).encode())
headers = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date", "x-request-id", "location"]), st.text(), max_size=3
)


@pytest.mark.promise(19)
@given(
    job=st.sampled_from([CHAT, embed("a"), embed(["a", "b"])]),
    status=st.integers(100, 999),
    body=bodies,
    headers=headers,
)
def test_no_response_raises_anything_but_a_named_failure(
    job: PromptJob, status: int, body: bytes, headers: dict[str, str]
) -> None:
    response = RawResponse(status, CIMultiDict(headers), body)
    assert_answer_or_named_failure(lambda: CODEC.response(job, response, now=NOW), status=status)
