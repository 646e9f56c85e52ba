"""Answers and refusals that are none of OpenAI's, and of which the corpus has no public example."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from tasks.results import Usage
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import Answer, RawResponse
from workers.providers.openai import OpenAICodec

NOW = 1_767_225_600.0
CHAT = PromptJob("job-1", "chat", "m", {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "n": 2})


def read(status: int, body: Any, **headers: str) -> Answer | Failure:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    try:
        return OpenAICodec().response(CHAT, RawResponse(status, named, data), now=NOW)
    except Failure as failure:
        return failure


def refused(status: int, body: Any, **headers: str) -> Failure:
    found = read(status, body, **headers)
    assert isinstance(found, Failure)
    return found


def answered(body: Any) -> Answer:
    found = read(200, body)
    assert isinstance(found, Answer), found
    return found


def completion(*choices: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, **choice} for index, choice in enumerate(choices)], **rest}


FILTERED = {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
GOOD = {"message": {"role": "assistant", "content": "second"}, "finish_reason": "stop"}
BROKEN = {"message": {"role": "assistant", "content": "half"}, "finish_reason": "error"}


@pytest.mark.parametrize("first", [FILTERED, BROKEN, {"finish_reason": "content_filter"}])
def test_one_good_choice_of_several_is_an_answer(first: dict[str, Any]) -> None:
    body = completion(first, GOOD, usage={"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
    found = answered(body)
    assert (found.text, found.response, found.usage) == ("second", body, Usage(10, 5))


def test_a_byte_order_mark_is_skipped() -> None:
    body = b"\xef\xbb\xbf" + json.dumps(completion(GOOD)).encode()
    found = read(200, body)
    assert isinstance(found, Answer)
    assert found.text == "second"


def test_parts_that_are_a_picture_are_an_answer() -> None:
    picture = {
        "message": {"content": [{"type": "image_url", "image_url": {"url": "data:..."}}]},
        "finish_reason": "stop",
    }
    assert answered(completion(picture)).text is None


def test_an_error_beside_choices_is_the_error() -> None:
    body = completion(BROKEN, error={"code": 429, "message": "slow down"})
    assert refused(200, body, retry_after="3").retry_after_s == 3.0
    assert refused(200, body).code == "rate_limited"


def test_a_choices_own_error_is_that_error() -> None:
    found = refused(200, completion({**BROKEN, "error": {"code": 429, "message": "upstream"}}))
    assert (found.code, found.retryable, found.is_refusal) == ("rate_limited", True, True)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"code": 429, "message": "slow down"}, "rate_limited", True),
        ({"code": "503", "message": "busy"}, "server_error", True),
        ({"code": 401, "message": "no"}, "auth", False),
        ({"type": "insufficient_quota", "message": "no"}, "quota_exhausted", False),
        ({"message": "who knows"}, "bad_response", True),
        ("who knows", "bad_response", True),
    ],
)
def test_an_error_within_a_200_is_that_error(error: Any, code: str, retryable: bool) -> None:
    found = refused(200, {"error": error})
    assert (found.code, found.retryable, found.http_status) == (code, retryable, 200)


def test_the_wait_of_a_retry_info_in_an_array() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "39.5s"}
    body = [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "quota", "details": [info]}}]
    assert refused(429, body).retry_after_s == 39.5


@pytest.mark.parametrize(
    ("sentence", "wait_s"),
    [
        ("Please try again in 20s.", 20.0),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 439ms.", 0.439),
        ("Please try again in 1h2m3.5s.", 3_723.5),
        ("Please retry after 1 minute.", 60.0),
        ("Please wait 2 minutes, then go on.", 120.0),
        ("Your limit resets in 1 day.", 86_400.0),
        ("Please try again later.", None),
        ("The prompt said: try again in the morning", None),
        ("Please try again in 0s.", None),
    ],
)
def test_a_wait_in_words(sentence: str, wait_s: float | None) -> None:
    assert refused(429, {"error": {"message": sentence}}).retry_after_s == wait_s


def test_a_header_goes_before_what_the_sentence_says() -> None:
    body = {"error": {"message": "Please try again in 20s."}}
    assert refused(429, body, retry_after="3").retry_after_s == 3.0
    assert refused(429, body, retry_after="0").retry_after_s == 20.0


def test_an_account_that_is_suspended_is_not_tried_again() -> None:
    message = "Your account is suspended, please check your plan and recharge"
    found = refused(429, {"error": {"type": "exceeded_current_quota_error", "message": message}})
    assert (found.code, found.retryable) == ("quota_exhausted", False)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 12},
        {"prompt_tokens": 12, "completion_tokens": None},
        {"prompt_tokens": 12, "completion_tokens": "many"},
        {"prompt_tokens": 12, "completion_tokens": -1},
        {"completion_tokens": 5},
    ],
)
def test_half_a_usage_is_unknown(usage: dict[str, Any]) -> None:
    assert answered(completion(GOOD, usage=usage)).usage is None


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 12, "total_tokens": 20}, Usage(12, 8)),
        ({"completion_tokens": 8, "total_tokens": 20}, Usage(12, 8)),
        ({"prompt_tokens": "12", "completion_tokens": "8"}, Usage(12, 8)),
        ({"input_tokens": 12, "output_tokens": 8}, Usage(12, 8)),
        ({"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 3}, Usage(12, 8)),
        ({"prompt_tokens": 12, "completion_tokens": 8, "cached_tokens": 7}, Usage(12, 8, 7)),
        ({"prompt_tokens": 12, "completion_tokens": 8, "cache_read_input_tokens": 99}, Usage(12, 8, 12)),
        (
            {"prompt_tokens": 12, "completion_tokens": 8, "prompt_tokens_details": {"cache_write_tokens": 5}},
            Usage(12, 8, 0, 5),
        ),
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 8,
                "total_tokens": 120,
                "cache_read_input_tokens": 60,
                "cache_creation_input_tokens": 40,
            },
            Usage(112, 8, 60, 40),
        ),
    ],
)
def test_usage_in_other_spellings(usage: dict[str, Any], counted: Usage) -> None:
    assert answered(completion(GOOD, usage=usage)).usage == counted


def test_the_providers_sentence_is_in_no_text_of_ours() -> None:
    secret = "the key sk-canary-1234567890 and the prompt of the canary"
    for status in (200, 400, 401, 403, 413, 429, 500):
        for body in (
            {"error": {"message": secret}},
            {"message": secret},
            [{"error": {"message": secret}}],
            secret.encode(),
        ):
            found = refused(status, body)
            assert "canary" not in f"{found} {found.message} {found!r}"
