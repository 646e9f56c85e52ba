"""Remote control's `revoke`, as Celery's, for many jobs at a time.

Celery's asks the result backend twice for each job, on the hub's thread: 50,000 cancelled jobs held every worker up for
a minute. It replaces Celery's when this module is imported (docs.celeryq.dev, "Writing your own remote control
commands").
"""

from __future__ import annotations

from typing import Any

from celery.worker import control
from celery.worker import state as worker_state
from celery.worker.state import requests
from kombu.utils.functional import maybe_list

from ..broker.cancellations import cancellations

__all__ = ["revoke"]


@control.control_command(  # type: ignore[untyped-decorator]  # Celery has no types
    name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
)
def revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: str | None = None, marked: bool = False, **_: Any
) -> dict[str, Any]:
    """Revoke task by task id (or list of ids).

    `marked`: Redis has a mark of each, as it has of what our client cancels.
    """
    job_ids = set(maybe_list(task_id) or [])
    known = [requests[job_id] for job_id in job_ids if job_id in requests]
    active = {request.id for request in known if request in worker_state.active_requests}
    worker_state.revoked.update(job_ids)
    if marked:
        cancellations.hear(job_ids)
    by_backend: dict[int, tuple[Any, list[str]]] = {}
    for job_id in job_ids - active:
        request = requests.get(job_id)
        backend = request.task.backend if request is not None else state.app.backend  # a task may have its own
        by_backend.setdefault(id(backend), (backend, []))[1].append(job_id)
    for backend, its_ids in by_backend.values():
        _end(backend, its_ids)
    if not terminate:
        return _ok(f"tasks {job_ids} flagged as revoked")
    signum = control._signals.signum(signal or control.TERM_SIGNAME)
    for request in known:
        request.terminate(state.consumer.pool, signal=signum)
    ended = ", ".join(request.id for request in known)
    return _ok(f"terminate: {ended}" if ended else "terminate: tasks unknown")


def _ok(text: str) -> dict[str, Any]:
    return {"ok": text}


def _end(backend: Any, job_ids: list[str]) -> None:
    if hasattr(backend, "revoke"):
        cancellations.end(backend, job_ids, known_only=False)
        return
    for job_id in job_ids:
        if backend.get_state(job_id) in {"PENDING", "RECEIVED", "RETRY", "REJECTED"}:
            backend.mark_as_revoked(job_id, reason="revoked", store_result=True)
