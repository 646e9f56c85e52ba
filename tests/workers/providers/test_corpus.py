"""Each shape of the corpus is read as its file says. See corpus/README.md."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from tasks.results import Usage
from tasks.wire.kinds import KINDS
from workers.limiter.heard.headers import rate_headers, wait_s
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import CODECS, Answer, RawResponse
from workers.providers.stream.sse import EventStream

CORPUS = Path(__file__).parent / "corpus"
SHAPES = {path.stem: json.loads(path.read_bytes()) for path in sorted(CORPUS.glob("*.json"))}

FIELDS = {"source", "note", "codec", "kind", "request", "now", "streamed", "answers", "reading"}
READINGS = {"code", "retryable", "refused", "wait_s", "text", "usage", "says", "response", "limits"}
NOW = 1_767_225_600.0
NAME_CHARS = 64


def job_of(shape: dict[str, Any]) -> PromptJob:
    kind = shape["kind"]
    text: Any = "a" if kind != "chat" else [{"role": "user", "content": "Hello"}]
    return PromptJob("job-1", kind, "m", {"model": "m", KINDS[kind].field: text, **shape.get("request", {})})


def raw_of(answer: dict[str, Any]) -> RawResponse:
    if "base64" in answer:
        body = base64.b64decode(answer["base64"])
    else:
        body = answer["text"].encode() if "text" in answer else json.dumps(answer["body"]).encode()
    return RawResponse(answer["status"], CIMultiDict(answer.get("headers", {})), body)


def assembled(shape: dict[str, Any], raw: RawResponse) -> RawResponse:
    """A stream as the whole answer that it brings, or the error that ends it."""
    assembly, events = CODECS[shape["codec"]].assembly(job_of(shape)), EventStream()
    for name, data in [*events.feed(raw.body), *events.close()]:
        if not assembly.is_done:
            assembly.add(name, data)
    assert assembly.is_whole
    return RawResponse(raw.status, raw.headers, orjson.dumps(assembly.whole()))


def read(shape: dict[str, Any], raw: RawResponse) -> Answer | Failure:
    try:
        raw = assembled(shape, raw) if shape.get("streamed") else raw
        return CODECS[shape["codec"]].response(job_of(shape), raw, now=shape.get("now", NOW))
    except Failure as failure:
        return failure


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def usage_of(expected: dict[str, int] | None) -> Usage | None:
    return None if expected is None else Usage(**expected)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_read_as_it_should_be(name: str) -> None:
    shape = SHAPES[name]
    expected, now = shape["reading"], shape.get("now", NOW)
    for answer in shape["answers"]:
        raw = raw_of(answer)
        found = read(shape, raw)
        check_outcome(found, raw, expected, now)
        if "limits" in expected:
            told = [header.as_map() | {"tells": header.tells} for header in rate_headers(raw.headers, now)]
            assert [{key: header[key] for key in ("tells", "limit", "remaining", "reset_s")} for header in told] == [
                {**limit, "reset_s": pytest.approx(limit["reset_s"], abs=0.002)} for limit in expected["limits"]
            ]
        if isinstance(found, Failure):
            for text in strings(answer.get("body", answer.get("text"))):
                assert len(text) <= NAME_CHARS or text not in found.message


def check_outcome(found: Answer | Failure, raw: RawResponse, expected: dict[str, Any], now: float) -> None:
    if isinstance(found, Failure):
        assert found.code == expected.get("code"), found.message
        assert found.retryable == expected.get("retryable", found.retryable)
        assert found.is_refusal == expected.get("refused", found.is_refusal)
        assert expected.get("says", "") in found.message
        asked_s = wait_s(raw.headers, now) if found.retry_after_s is None else found.retry_after_s
        assert asked_s == pytest.approx(expected.get("wait_s", asked_s), abs=0.001)
    else:
        assert "code" not in expected, "an answer was read where there is none"
        assert found.text == expected.get("text", found.text)
        response = expected.get("response", {})
        assert {key: found.response.get(key) for key in response} == response
    assert found.usage == usage_of(expected["usage"]) if "usage" in expected else True


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_its_source_and_no_field_that_nobody_reads(name: str) -> None:
    shape = SHAPES[name]
    assert shape.keys() <= FIELDS
    assert shape["reading"].keys() <= READINGS
    assert shape["source"].startswith("https://")
    assert shape["note"]
    assert shape["answers"]
