"""Celery's result record, read as a `PromptResult`. No I/O here.

Whatever stands there, something readable comes out: a caller gets an answer or a named error.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from typing import Any, Final

from ..errors import ErrorCode
from ..results import JobError, PromptResult
from .vectors import MARK, unpacked
from .vocabulary import CELERY_COMPRESSED, CELERY_ENDS, Status

__all__ = ["decoded", "failure", "is_end", "lost", "read_outcome"]

_LARGE_BYTES: Final = 64 * 1024

_ZLIB: Final = b"application/x-gzip"
"""kombu's name for it."""


async def decoded(job_id: str, record: bytes | None) -> PromptResult | None:
    """`read_outcome`, in a thread for a record that would hold the event loop up: 1 MB takes some 10 ms."""
    if record is None or len(record) < _LARGE_BYTES:
        return read_outcome(job_id, record)
    return await asyncio.to_thread(read_outcome, job_id, record)


def read_outcome(job_id: str, record: str | bytes | None) -> PromptResult | None:
    """How the job ended; None where the record is missing or says that the job has not ended (RETRY, STARTED)."""
    if record is None:
        return None
    try:
        data = json.loads(_decompressed(record))
    except ValueError:
        return failure(job_id, "the stored result is not JSON; set result_serializer = 'json' at the workers")
    if not isinstance(data, dict) or data.get("status") not in CELERY_ENDS:
        return None
    return _READERS[data["status"]](job_id, data.get("result"))


def is_end(head: str) -> bool:
    """Whether a result record that begins so is a job's end. `head`: 40 characters of it."""
    if head.startswith(CELERY_COMPRESSED):
        return True
    state = re.match(r'\{"status": ?"([A-Z]+)"', head)
    return state is not None and state[1] in CELERY_ENDS


def _decompressed(record: str | bytes) -> str | bytes:
    """`record` may be bytes read as text, with "surrogateescape". Raises ValueError for what is not as it is marked."""
    mark = CELERY_COMPRESSED if isinstance(record, str) else CELERY_COMPRESSED.encode()
    if not record.startswith(mark):  # type: ignore[arg-type] # of the same type as the record
        return record
    raw = record.encode(errors="surrogateescape") if isinstance(record, str) else record
    method, _, body = raw[len(mark) :].partition(b"\0")
    if method != _ZLIB:
        raise ValueError("compressed by a method that is not zlib")
    try:
        return zlib.decompress(body)
    except zlib.error:
        raise ValueError("not zlib") from None


def failure(job_id: str, message: str, *, code: ErrorCode = "internal", status: Status = "failed") -> PromptResult:
    """A result that says why there is no answer."""
    return PromptResult(id=job_id, status=status, error=JobError(code=code, message=message))


def lost(job_id: str) -> PromptResult:
    """The result of a job that has ended, of which nothing more is known."""
    return failure(job_id, "the job has ended, but its result was deleted or has expired (result_expires)")


def _success(job_id: str, result: Any) -> PromptResult:
    return _stored(result) or failure(job_id, "the stored result is not a prompt's; is this another task's id?")


def _failure(job_id: str, result: Any) -> PromptResult:
    """`promptmill` is ours; without it the job failed outside our code (a time limit, a lost worker)."""
    if not isinstance(result, dict):
        return failure(job_id, "the job failed; no reason is stored")
    if (stored := _stored(result.get("promptmill"))) is not None and stored.error is not None:
        return stored
    message = result.get("exc_message")
    text = " ".join(map(str, message)) if isinstance(message, list) else str(message or "")
    return failure(job_id, f"{result.get('exc_type', 'Exception')}: {text}")


def _revoked(job_id: str, result: Any) -> PromptResult:
    if isinstance(result, dict) and (stored := _stored(result.get("promptmill"))) is not None:
        return stored
    if isinstance(result, dict) and "expired" in (result.get("exc_message") or ()):
        return failure(job_id, "the job's `expires` passed before a worker took it", code="expired", status="expired")
    return failure(job_id, "the job was cancelled", code="cancelled", status="cancelled")


_READERS: Final = {"SUCCESS": _success, "FAILURE": _failure, "REVOKED": _revoked}


def _stored(value: Any) -> PromptResult | None:
    if not isinstance(value, dict) or "id" not in value or "status" not in value:
        return None
    try:
        response = value.get("response")
        if isinstance(response, dict) and MARK in response:
            value = {**value, "response": unpacked(response)}
        return PromptResult.from_dict(value)
    except (TypeError, AttributeError, LookupError, ValueError):  # fields of a shape that this version does not know
        return None
