"""Responses, completions and moderations: how they are asked for, read, and answered by the simulated provider."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from config.catalog import Catalog
from tasks.results import Usage
from tasks.wire.kinds import KINDS, JobKind
from workers.answers.known import is_good
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import CODECS, RawResponse

from .test_conformance import NOW

PROMPTS: dict[JobKind, Any] = {"respond": "canary 12", "complete": "canary 12", "moderate": "canary 12"}
NEW: list[JobKind] = ["respond", "complete", "moderate"]
each_new = pytest.mark.parametrize("kind", NEW)


def job_of(kind: JobKind, prompt: Any = None, **body: Any) -> PromptJob:
    prompt = PROMPTS[kind] if prompt is None else prompt
    fields = {"model": "m", KINDS[kind].field: prompt, **body}
    return PromptJob("job-1", kind, "m", fields)


def read(job: PromptJob, body: Any, status: int = 200) -> Any:
    return CODECS["openai"].response(job, RawResponse(status, {}, json.dumps(body).encode()), now=NOW)


def refused(job: PromptJob, body: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        read(job, body)
    return caught.value


# -- how it is asked for


def sent(kind: str, job: PromptJob, *, streams: bool = False, **provider: Any) -> Any:
    table = {"base_url": "https://host/v1", "kind": kind, **provider}
    models = {"m": {"provider": "p", "upstream": "up/stream"}}
    catalog = Catalog.model_validate({"providers": {"p": table}, "models": models})
    known = catalog.providers["p"]
    return CODECS[kind].request(job, model=catalog.model("m"), provider=known, key=SecretStr("k"), streams=streams)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_path(kind: JobKind) -> None:
    job = job_of(kind, "text")
    assert sent("openai", job).url == f"https://host/v1{KINDS[kind].path}"
    v1 = "https://name.openai.azure.com/openai/v1"
    assert sent("azure", job, base_url=v1).url == v1 + KINDS[kind].path


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("complete", "/openai/deployments/up%2Fstream/completions"),
        ("respond", "/openai/responses"),
    ],
)
def test_azures_older_addresses(kind: JobKind, path: str) -> None:
    request = sent("azure", job_of(kind), base_url="https://h", query={"api-version": "2025-04-01-preview"})
    assert request.url == f"https://h{path}?api-version=2025-04-01-preview"
    assert json.loads(request.body)["model"] == "up/stream"


@each_new
def test_the_body_goes_out_as_it_came(kind: JobKind) -> None:
    own = {"store": False, "tools": [{"type": "web_search"}], "metadata": {"a": "b"}, "previous_response_id": "r-1"}
    job = job_of(kind, **own)
    assert json.loads(sent("openai", job).body) == {**job.body, "model": "up/stream"}


def test_a_streamed_response_has_no_options_of_a_chat() -> None:
    body = json.loads(sent("openai", job_of("respond"), streams=True).body)
    assert body["stream"] is True and "stream_options" not in body


def test_a_streamed_completion_asks_for_its_usage() -> None:
    body = json.loads(sent("openai", job_of("complete"), streams=True).body)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


@each_new
def test_anthropic_refuses_each_by_name(kind: JobKind) -> None:
    with pytest.raises(Failure, match=f"Anthropic has no {KINDS[kind].api}") as caught:
        sent("anthropic", job_of(kind))
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("job", "size"),
    [
        (job_of("respond", "x" * 40, instructions="y" * 8, max_output_tokens=7), (48, 7, 1, 0)),
        (job_of("respond", [{"role": "user", "content": "x" * 40}]), (44, None, 1, 0)),
        (job_of("complete", ["x" * 5, "y" * 5], n=3, max_tokens=9), (10, 9, 6, 0)),
        (job_of("complete", [5, 6, 7]), (0, None, 1, 3)),
        (job_of("complete", [[5, 6], [7]], n=2), (0, None, 4, 3)),
        (job_of("moderate", ["x" * 5, "y" * 5]), (10, None, 1, 0)),
    ],
)
def test_the_limiter_hears_how_large_it_is(job: PromptJob, size: tuple[Any, ...]) -> None:
    found = CODECS["openai"].size(job)
    assert (found.input_chars, found.max_tokens, found.answers, found.input_tokens) == size


def test_a_response_counts_its_pictures() -> None:
    parts = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    assert CODECS["openai"].size(job_of("respond", [{"role": "user", "content": parts}])).media.pictures == 1


# -- what comes back


def message(*parts: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": list(parts)}


def text(value: str) -> dict[str, Any]:
    return {"type": "output_text", "text": value, "annotations": []}


REFUSAL = {"type": "refusal", "refusal": "I can't."}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
CALL = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 14,
}


def response(*output: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "output": list(output),
        "usage": USAGE,
        **fields,
    }


def incomplete(reason: str, *output: Any) -> dict[str, Any]:
    return response(*output, status="incomplete", incomplete_details={"reason": reason})


@pytest.mark.parametrize(
    ("body", "found", "is_whole"),
    [
        (response(message(text("24 clips"))), "24 clips", True),
        (response(THOUGHT, message(text("24"), text(" clips"))), "24 clips", True),
        (response(message(text("a")), CALL, message(text("b"))), "ab", True),
        (response(THOUGHT, CALL), None, True),
        (response({"type": "image_generation_call", "result": "AAAA"}), None, True),
        (response(message(REFUSAL)), None, False),
        (incomplete("max_output_tokens", message(text("24 cl"))), "24 cl", False),
        (incomplete("content_filter", message(text("24 cl"))), "24 cl", False),
    ],
)
def test_a_response_is_read(body: dict[str, Any], found: str | None, is_whole: bool) -> None:
    answer = read(job_of("respond"), body)
    assert (answer.text, answer.response) == (found, body)
    assert answer.usage == Usage(input_tokens=9, output_tokens=5, cached_tokens=4)
    assert is_good("respond", body) is is_whole


@pytest.mark.parametrize(
    ("body", "code", "part", "retryable"),
    [
        (incomplete("max_output_tokens", THOUGHT), "bad_response", "raise max_output_tokens", False),
        (incomplete("content_filter"), "content_filter", "withheld", False),
        (response(THOUGHT), "bad_response", "reasoning and no answer", False),
        (response(), "bad_response", "no message", True),
        (response(message(text(""))), "bad_response", "no content", True),
        (response(status="failed"), "server_error", "broke the answer off", True),
        (response(message(text("24")), status="cancelled"), "server_error", "broke the answer off", True),
        (response(status="queued"), "bad_response", "not finished", False),
        (response(output=None), "bad_response", "no output", True),
    ],
)
def test_what_is_no_response_has_its_name(body: Any, code: str, part: str, retryable: bool) -> None:
    failure = refused(job_of("respond"), body)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert part in failure.message
    assert "output" in body and (body["output"] is None or failure.usage is not None)


@pytest.mark.parametrize(
    ("code", "ours"),
    [("server_error", "server_error"), ("rate_limit_exceeded", "rate_limited"), ("odd", "bad_response")],
)
def test_a_failed_response_is_its_error(code: str, ours: str) -> None:
    body = response(status="failed", error={"code": code, "message": "canary"}, usage=None)
    failure = refused(job_of("respond"), body)
    assert (failure.code, failure.retryable) == (ours, True)
    assert "canary" not in failure.message


def completions(*texts: Any, reason: str = "stop") -> dict[str, Any]:
    choices = [{"index": n, "text": each, "finish_reason": reason} for n, each in enumerate(texts)]
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {"object": "text_completion", "choices": choices, "usage": usage}


@pytest.mark.parametrize(
    ("job", "body", "found"),
    [
        (job_of("complete"), completions(" clips"), " clips"),
        (job_of("complete"), completions(""), ""),
        (job_of("complete", ["a", "b"], n=2), completions("1", "2", "3", "4"), "1"),
        (job_of("complete"), completions("cut", reason="length"), "cut"),
    ],
)
def test_a_completion_is_read(job: PromptJob, body: Any, found: str) -> None:
    answer = read(job, body)
    assert (answer.text, answer.usage) == (found, Usage(3, 4))
    assert is_good("complete", body) is (found != "cut")


@pytest.mark.parametrize(
    ("body", "code", "part"),
    [
        (completions("a"), "bad_response", "holds 1 completions where 2"),
        ({"choices": None}, "bad_response", "holds no completions"),
        (completions("a", None), "bad_response", "has no text"),
        (completions("", "", reason="content_filter"), "content_filter", "withheld"),
        (completions("", "", reason="length"), "bad_response", "raise max_tokens"),
    ],
)
def test_what_is_no_completion_has_its_name(body: Any, code: str, part: str) -> None:
    failure = refused(job_of("complete", ["a", "b"]), body)
    assert failure.code == code and part in failure.message


VERDICT = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.1}}
PARTS = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "https://host/p.png"}}]


@pytest.mark.parametrize(("inputs", "count"), [("a", 1), (["a", "b"], 2), (PARTS, 1)])
def test_a_moderation_has_a_verdict_for_each_input(inputs: Any, count: int) -> None:
    body = {"id": "modr-1", "results": [VERDICT] * count}
    answer = read(job_of("moderate", inputs), body)
    assert (answer.text, answer.usage, answer.response) == (None, None, body)
    assert is_good("moderate", body)
    assert "verdicts" in refused(job_of("moderate", inputs), {"results": [VERDICT] * (count + 1)}).message
    assert "categories" in refused(job_of("moderate", inputs), {"results": [{}] * count}).message


def test_a_moderation_that_counts_tokens_has_its_usage() -> None:
    body = {"results": [VERDICT], "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}}
    assert read(job_of("moderate"), body).usage == Usage(7, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "stop", "message", "output_text", "refusal"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["output", "choices", "results", "content", "type", "text", "status", "categories"]), inner
        )
    ),
    max_leaves=12,
)


@given(kind=st.sampled_from(NEW), body=JSON)
def test_whatever_comes_is_an_answer_or_a_named_failure(kind: JobKind, body: Any) -> None:
    try:
        assert read(job_of(kind), body).response == body
    except Failure as failure:
        assert failure.code
