"""Whatever stands under a result's key, something readable comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import JobError, JobFailed, PromptResult, TimedOut, Usage
from tasks.errors import ERROR_CODES, failure_class
from tasks.wire.record import read_outcome

from .harness import celery_record

SUCCEEDED = PromptResult("j", "succeeded", text="hi", usage=Usage(3, 4), cost_usd=0.5, metadata={"a": [1]})
FAILED = PromptResult("j", "failed", error=JobError(code="timeout", message="30 s", retryable=True))


@pytest.mark.parametrize("result", [SUCCEEDED, FAILED], ids=["succeeded", "failed"])
def test_what_a_worker_stores_is_read_as_it_was(result: PromptResult) -> None:
    assert read_outcome("j", celery_record("j", result)) == result
    assert read_outcome("j", celery_record("j", result).encode()) == result


def record(status: str, result: Any) -> str:
    return json.dumps({"status": status, "result": result, "traceback": None})


@pytest.mark.parametrize(
    ("stored", "status", "code", "text"),
    [
        (celery_record("j", None), "cancelled", "cancelled", "cancelled"),
        (record("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["expired"]}), "expired", "expired", "expi"),
        (record("FAILURE", {"exc_type": "Lost", "exc_message": ["signal 9"]}), "failed", "internal", "Lost: signal 9"),
        (record("FAILURE", {"exc_type": "Lost", "exc_message": "9"}), "failed", "internal", "Lost: 9"),
        (record("FAILURE", "boom"), "failed", "internal", "no reason is stored"),
        (record("FAILURE", {"promptmill": {"id": "j", "status": "failed"}}), "failed", "internal", "Exception"),
        (record("SUCCESS", 42), "failed", "internal", "not a prompt's"),
        (record("SUCCESS", {"id": "j", "status": "succeeded", "usage": 7}), "failed", "internal", "not a prompt's"),
        ("\x80\x04pickle", "failed", "internal", "not JSON"),
    ],
)
def test_foreign_records_are_named_errors(stored: str, status: str, code: str, text: str) -> None:
    outcome = read_outcome("j", stored)
    assert outcome is not None and outcome.error is not None
    assert (outcome.id, outcome.status, outcome.error.code) == ("j", status, code)
    assert text in outcome.error.message
    assert isinstance(JobFailed.of(outcome), failure_class(code))


@pytest.mark.parametrize("stored", [None, record("RETRY", {}), record("STARTED", {}), "[]", "null", '{"status": 1}'])
def test_what_is_no_end_is_no_outcome(stored: str | None) -> None:
    assert read_outcome("j", stored) is None


def test_fields_of_a_newer_version_are_ignored() -> None:
    newer = SUCCEEDED.to_dict() | {"invented_later": 1}
    assert read_outcome("j", record("SUCCESS", newer)) == SUCCEEDED


@given(st.recursive(st.none() | st.text() | st.integers(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_no_result_breaks_the_reader(result: Any) -> None:
    for status in ("SUCCESS", "FAILURE", "REVOKED"):
        outcome = read_outcome("j", record(status, result))
        assert outcome is not None and outcome.error is not None


def test_each_code_has_its_class() -> None:
    assert {failure_class(code).code for code in ERROR_CODES} == set(ERROR_CODES)
    assert failure_class("timeout") is TimedOut
    assert failure_class("of a newer version") is JobFailed
