"""How failures pass through Celery's tracer (celery/app/trace.py), and what of them must not stay.

For each failure Celery copies the traceback, with a list of the positions of every instruction in each of its frames:
0.2 MB and 4 ms of CPU, mostly for the tracer's own frame. And the copy belongs to a cycle (the exception, its
traceback, the tracer's frame, its local variables, the exception), which waits for a full collection. A queue may fail
by tens of thousands, because of a revoked key or of deadlines.
"""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.app.trace import TraceInfo

from tasks.errors import JobFailed

__all__ = ["PromptInfo", "forget_frames", "without_traceback"]


class PromptInfo(TraceInfo):  # type: ignore[misc]  # Celery publishes no types
    """Celery's `TraceInfo` for prompt tasks, to which a job without an answer is an end like any other."""

    def handle_failure(
        self, task: Any, req: Any, store_errors: bool = True, call_errbacks: bool = True
    ) -> ExceptionInfo:
        """As Celery's. Of a `JobFailed` it needs no traceback, which would show frames of ours alone."""
        failed = self.retval
        if not isinstance(failed, JobFailed):
            return super().handle_failure(task, req, store_errors=store_errors, call_errbacks=call_errbacks)
        failed.__traceback__ = None
        info = without_traceback(failed)
        task.backend.mark_as_failure(
            req.id, failed, info.traceback, request=req, store_result=store_errors, call_errbacks=call_errbacks
        )
        task.on_failure(failed, req.id, req.args, req.kwargs, info)
        signals.task_failure.send(
            sender=task, task_id=req.id, exception=failed, args=req.args, kwargs=req.kwargs, traceback=None, einfo=info
        )
        self._log_error(task, req, info)
        return info


def without_traceback(exc: BaseException) -> ExceptionInfo:
    """What Celery makes of an exception that it catches, without frames; the text for the result is the exception's."""
    info = ExceptionInfo.__new__(ExceptionInfo)
    info.type, info.exception, info.tb, info.internal = type(exc), exc, None, False
    info.traceback = f"{type(exc).__module__}.{type(exc).__qualname__}: {exc}\n"
    return info


def forget_frames(info: ExceptionInfo) -> None:
    """Break the cycle of a failure that the tracer has returned; its traceback has been written down as text.

    Celery clears the frames below the tracer's own, which still runs then (`traceback_clear`).
    """
    exc = getattr(info.exception, "exc", None)
    for each in (info.exception, exc):
        if isinstance(each, BaseException):
            each.__traceback__ = None
