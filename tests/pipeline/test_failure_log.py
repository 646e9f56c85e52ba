"""What an operator sees of failed jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from tasks.results import JobError, PromptResult
from workers.telemetry.counts import counts
from workers.telemetry.failure_log import FailureLog


@pytest.fixture(autouse=True)
def nothing_counted() -> Iterator[None]:
    counts.take()
    yield
    counts.take()


def failed(job_id: str, code: str = "auth", model: str = "m") -> PromptResult:
    error = JobError(code, "the key was refused", provider_body="PROVIDER'S BODY")  # type: ignore[arg-type] # one of the codes
    return PromptResult(id=job_id, status="failed", model=model, error=error, attempts=1)


async def test_the_first_of_a_kind_is_logged_at_once_and_the_others_together(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog(every_s=0.05)
    for number in range(100):
        log.note(failed(f"job-{number}"))
    log.note(failed("another", code="not_found"))
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


async def test_a_line_has_fields_of_its_own_and_not_the_provider_s_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    FailureLog().note(failed("job-1"))
    [record] = caplog.records
    fields = vars(record)
    assert {name: fields[name] for name in ("job", "model", "code", "attempts")} == {
        "job": "job-1",
        "model": "m",
        "code": "auth",
        "attempts": 1,
    }
    assert "PROVIDER'S BODY" not in str(fields)
