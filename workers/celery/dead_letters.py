"""Tells whoever waits for a job that its message goes to the dead letters."""

from __future__ import annotations

import logging
from typing import Any

from tasks.errors import JobFailed
from tasks.results import JobError, PromptResult

from ..broker.leases import REJECTED, Grave
from ..broker.messages import Unreadable, context, read

__all__ = ["tell_end"]

logger = logging.getLogger("promptmill.broker")


def tell_end(app: Any, grave: Grave) -> bool:
    """Store the failure of the message's job, and log it. False: the result's Redis did not take it."""
    logger.error("A message was buried (%s): %s. See it with `promptmill dead list`.", grave.kind, grave.reason)
    if grave.kind == REJECTED:
        return True  # Celery has told them (celery/worker/request.py, `on_failure`)
    try:
        request = context(grave.lease.raw)
    except (ValueError, KeyError, TypeError):
        return True  # nobody can be waiting for a message without an id
    try:
        app.backend.mark_as_failure(request.id, _failure(request.id, grave), request=request)
    except Exception:
        logger.exception("The end of job %s could not be recorded; it is tried again", request.id)
        return False
    return True


def _failure(job_id: str, grave: Grave) -> JobFailed:
    error = JobError("dead_letter", f"{grave.reason}; see `promptmill dead show {job_id}`")
    result = PromptResult(
        id=job_id, status="failed", error=error, suspected_double_payment=_was_suspected(grave.lease.raw)
    )
    return JobFailed.of(result)


def _was_suspected(raw: bytes) -> bool:
    try:
        return read(raw).suspected
    except Unreadable:
        return False
