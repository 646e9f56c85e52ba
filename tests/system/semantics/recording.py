"""What a worker saw: signals and handlers, pushed to one Redis list for each task id."""

from __future__ import annotations

import json
import os
import re
from contextvars import ContextVar
from typing import Any

import redis
from celery import signals

store = redis.Redis.from_url(os.environ["SEMANTICS_REDIS_URL"], decode_responses=True)

prerun_mark: ContextVar[str] = ContextVar("prerun_mark", default="unset")

ADDRESS = re.compile(r"0x[0-9a-f]+")


def record(event: str, task_id: str, request: Any, /, **fields: Any) -> None:
    """Push an event, with the number of the run it belongs to: a retry may start before the run before it has ended."""
    run = (request.get("retries") or 0) + (request.get("replaced_task_nesting") or 0)
    store.rpush(f"events:{task_id}", json.dumps([event, run, fields], default=repr))


def described(value: Any) -> list[str]:
    return [type(value).__name__, ADDRESS.sub("0x", repr(value))]


def request_fields(request: Any) -> dict[str, Any]:
    """The request as a task sees it, without what must differ between workers (host name, process, times)."""
    delivery = request.delivery_info or {}
    return {
        "id": request.id,
        "args": described(request.args),
        "kwargs": described(request.kwargs),
        "retries": request.retries,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "group": request.group,
        "chord": bool(request.chord),
        "callbacks": len(request.callbacks or ()),
        "errbacks": len(request.errbacks or ()),
        "chain": len(request.chain or ()),
        "correlation_id": request.correlation_id,
        "delivery": {name: delivery.get(name) for name in ("exchange", "routing_key", "priority", "redelivered")},
        "headers": request.headers,
        "stamps": request.stamps,
        "is_eager": request.is_eager,
        "called_directly": request.called_directly,
        "timelimit": request.timelimit,
        "ignore_result": request.ignore_result,
        "has_eta": request.eta is not None,
        "has_expires": request.expires is not None,
        "nesting": request.replaced_task_nesting,
    }


@signals.task_received.connect
def on_received(request: Any, **_: Any) -> None:
    record("received", request.id, request.request_dict)


@signals.task_prerun.connect
def on_prerun(task_id: str, task: Any, **_: Any) -> None:
    prerun_mark.set(task_id)
    record("prerun", task_id, task.request, request=request_fields(task.request))


@signals.task_postrun.connect
def on_postrun(task_id: str, task: Any, state: str, retval: Any, **_: Any) -> None:
    record("postrun", task_id, task.request, state=state, retval=described(retval))


@signals.task_success.connect
def on_success(sender: Any, result: Any, **_: Any) -> None:
    record("success", sender.request.id, sender.request, result=described(result))


@signals.task_failure.connect
def on_failure(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    record("failure", task_id, sender.request, exception=described(exception))


@signals.task_retry.connect
def on_retry(request: Any, reason: Any, **_: Any) -> None:
    record("retry", request.id, request, reason=described(reason))


@signals.task_revoked.connect
def on_revoked(request: Any, terminated: bool, expired: bool, **_: Any) -> None:
    record("revoked", request.id, request, terminated=terminated, expired=expired)


@signals.task_internal_error.connect
def on_internal_error(task_id: str, request: Any, exception: BaseException, **_: Any) -> None:
    record("internal_error", task_id, request or {}, exception=described(exception))


@signals.worker_ready.connect
def on_ready(**_: Any) -> None:
    store.set("ready", os.getpid())


class Handlers:
    """Mixed into each task's base class."""

    request: Any

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        record("before_start", task_id, self.request, args=described(args))

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        record("on_success", task_id, self.request, retval=described(retval))

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("on_failure", task_id, self.request, exception=described(exc))

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("on_retry", task_id, self.request, exception=described(exc))

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("after_return", task_id, self.request, status=status, retval=described(retval))
