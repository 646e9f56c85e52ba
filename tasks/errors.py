"""Everything that can go wrong with a prompt job, as one tree.

::

    PromptmillError
    ├── InvalidJob                 the job can't be sent as it is; nothing was enqueued   (also a ValueError)
    │   ├── UnknownModel           no running worker's catalogue names this model
    │   └── IdTaken                a job of another tenant has this id
    ├── QueueUnavailable           Redis can't be reached within the time-out             (also a ConnectionError)
    │   └── QueueFull              Redis refuses writes: out of memory
    ├── UnknownJob                 no such job or group, or its record has expired        (also a LookupError)
    ├── GroupRolledBack            Redis has lost part of what was read of a group: read it again
    ├── StreamRestarted            the answer that was read as it came begins anew: throw the text away
    ├── ResultTimeout              the job has not ended within `timeout_s`; it goes on   (also a TimeoutError)
    └── JobFailed                  the job has ended without an answer; one class a code
        ├── AuthFailed, PermissionFailed, BadRequest, NotFound, TooLarge          your request or key
        ├── RateLimited, QuotaExhausted, ServerFailed, TimedOut,
        │   ConnectionFailed, BadResponse, ContentFiltered                         the provider
        └── JobCancelled, JobExpired, BudgetExhausted, DeadLettered, InternalFailure

Catch `JobFailed` for "the job ended badly", `PromptmillError` for anything from this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, get_args

if TYPE_CHECKING:
    from .results import PromptResult

__all__ = [
    "ERROR_CODES",
    "AuthFailed",
    "BadRequest",
    "BadResponse",
    "BudgetExhausted",
    "ConnectionFailed",
    "ContentFiltered",
    "DeadLettered",
    "ErrorCode",
    "GroupRolledBack",
    "IdTaken",
    "InternalFailure",
    "InvalidJob",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "NotFound",
    "PermissionFailed",
    "PromptmillError",
    "QueueFull",
    "QueueUnavailable",
    "QuotaExhausted",
    "RateLimited",
    "ResultTimeout",
    "ServerFailed",
    "StreamRestarted",
    "TimedOut",
    "TooLarge",
    "UnknownJob",
    "UnknownModel",
    "failure_class",
]

ErrorCode = Literal[
    "auth",
    "permission",
    "bad_request",
    "not_found",
    "too_large",
    "rate_limited",
    "quota_exhausted",
    "server_error",
    "timeout",
    "connection",
    "bad_response",
    "content_filter",
    "cancelled",
    "expired",
    "budget_exhausted",
    "dead_letter",
    "internal",
]
ERROR_CODES: tuple[ErrorCode, ...] = get_args(ErrorCode)


class PromptmillError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidJob(PromptmillError, ValueError):
    """The job can't be sent as it is. Nothing was enqueued."""


class UnknownModel(InvalidJob):
    """No running worker's catalogue names this model."""


class IdTaken(InvalidJob):
    """A job of another tenant has this id. Nothing was enqueued.

    `index` says which of the jobs that were submitted together it is, from 0.
    """

    def __init__(self, message: str, *, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class QueueUnavailable(PromptmillError, ConnectionError):
    """Redis can't be reached, or did not answer, within the queue's time-out; or no replica did that it is to have."""


class QueueFull(QueueUnavailable):
    """Redis refuses writes because it is out of memory (`maxmemory` with `noeviction`)."""


class UnknownJob(PromptmillError, LookupError):
    """No job or group has this id, or its record has expired."""


class GroupRolledBack(PromptmillError):
    """Redis has lost what was read of a group, further back than its reader remembers. Read the group again.

    It happens when Redis crashes before it has written its last seconds down, or a replica takes over that was far
    behind. A loss of less is dealt with by the reader.
    """


class StreamRestarted(PromptmillError):
    """The call whose text was read as it came broke off, and the answer begins anew. The text so far is no part of it.

    `number` is where the new beginning stands: what `after` takes to read it from its first character.
    """

    def __init__(self, message: str, *, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class ResultTimeout(PromptmillError, TimeoutError):
    """The job has not ended within `timeout_s`. It goes on; ask again later."""


class JobFailed(PromptmillError):
    """The job has ended without an answer.

    `code` is one of `ERROR_CODES`; `result` is the whole `PromptResult` with the provider's body and each
    attempt, or None where the exception was rebuilt by a stock Celery client, which carries its text alone.
    """

    code: ClassVar[ErrorCode] = "internal"

    def __init__(self, message: str, result: PromptResult | None = None) -> None:
        # `args` holds the text alone: Celery stores `args`, and the result travels beside it.
        super().__init__(message)
        self.result = result

    @classmethod
    def of(cls, result: PromptResult) -> JobFailed:
        """The exception of the class that fits a failed result. The text begins with the error's code."""
        error = result.error
        if error is None:
            raise ValueError(f"job {result.id} has not failed: its status is {result.status!r}")
        return failure_class(error.code)(f"{error.code}: {error.message}", result)


class AuthFailed(JobFailed):
    """The provider refused the key (401)."""

    code = "auth"


class PermissionFailed(JobFailed):
    """The key may not use this model or feature (403)."""

    code = "permission"


class BadRequest(JobFailed):
    """The provider, or our own check, refused the request (other 4xx)."""

    code = "bad_request"


class NotFound(JobFailed):
    """The provider, or our catalogue, does not know this model or endpoint (404)."""

    code = "not_found"


class TooLarge(JobFailed):
    """The prompt is larger than the model's context, or the answer is larger than our cap."""

    code = "too_large"


class RateLimited(JobFailed):
    """Still 429 after the last permitted attempt."""

    code = "rate_limited"


class QuotaExhausted(JobFailed):
    """The provider's account is out of credit; waiting does not help."""

    code = "quota_exhausted"


class ServerFailed(JobFailed):
    """Still 5xx after the last permitted attempt."""

    code = "server_error"


class TimedOut(JobFailed):
    """No whole answer in time, in the last permitted attempt."""

    code = "timeout"


class ConnectionFailed(JobFailed):
    """DNS, TCP or TLS failed, or the connection broke, in the last permitted attempt."""

    code = "connection"


class BadResponse(JobFailed):
    """The provider said 200 with something that is not an answer."""

    code = "bad_response"


class ContentFiltered(JobFailed):
    """The provider's content filter withheld the answer."""

    code = "content_filter"


class JobCancelled(JobFailed):
    """Somebody cancelled the job."""

    code = "cancelled"


class JobExpired(JobFailed):
    """The job's own deadline passed before it had an answer."""

    code = "expired"


class BudgetExhausted(JobFailed):
    """Reserved: there are no budgets yet, so no worker ends a job with it."""

    code = "budget_exhausted"


class DeadLettered(JobFailed):
    """The job was delivered too often without ending, or can't be read; see `promptmill dead show`."""

    code = "dead_letter"


class InternalFailure(JobFailed):
    """A fault of ours. Please report it."""

    code = "internal"


_BY_CODE: dict[str, type[JobFailed]] = {cls.code: cls for cls in JobFailed.__subclasses__()}


def failure_class(code: str) -> type[JobFailed]:
    """The `JobFailed` class of an error code; `JobFailed` itself for a code from a newer version."""
    return _BY_CODE.get(code, JobFailed)
