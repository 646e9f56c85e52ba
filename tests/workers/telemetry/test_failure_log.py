"""What an operator sees of failed jobs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tasks.results import Attempt, JobError, PromptResult
from workers.telemetry.counts import counts
from workers.telemetry.failure_log import FailureLog


def failed(job_id: str, code: Any = "auth", model: str = "m") -> PromptResult:
    error = JobError(code, "the key was refused", http_status=401, provider_body="PROVIDER'S BODY")
    return PromptResult(
        id=job_id,
        status="failed",
        model=model,
        error=error,
        attempts=1,
        duration_s=2.5,
        failed_attempts=(Attempt(code, "refused", answered_by="p/upstream-m"),),
    )


async def test_the_first_of_a_kind_is_logged_at_once_others_together(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog(every_s=0.05)
    for number in range(100):
        log.note(failed(f"job-{number}"), None)
    log.note(failed("another", code="not_found"), None)
    assert [record.getMessage() for record in caplog.records] == [
        "Job job-0 failed: auth (model m): the key was refused",
        "Job another failed: not_found (model m): the key was refused",
    ]
    caplog.clear()
    async with asyncio.timeout(10):
        while not caplog.records:
            await asyncio.sleep(0.005)
    [record] = caplog.records
    assert record.getMessage().startswith("99 more jobs failed like it in 0.05 s, the last of them job-99: auth")
    assert counts.take() == {"jobs_failed_total:auth": 100, "jobs_failed_total:not_found": 1}


async def test_a_line_has_its_own_fields_and_not_the_provider_s_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    FailureLog().note(failed("job-1"), "acme")
    [record] = caplog.records
    fields = vars(record)
    expected = {
        "job": "job-1",
        "tenant": "acme",
        "model": "m",
        "provider": "p/upstream-m",
        "code": "auth",
        "http_status": 401,
        "duration_s": 2.5,
        "attempts": 1,
    }
    assert {name: fields[name] for name in expected} == expected
    assert "PROVIDER'S BODY" not in str(fields)
