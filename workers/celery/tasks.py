"""The tasks that make up the queue. Their names and arguments are promises to producers (`workers.prompt.job`)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from celery.exceptions import Ignore
from celery.states import READY_STATES

from tasks.errors import JobFailed
from tasks.wire.kinds import KINDS
from tasks.wire.redis_keys import QUEUE

from ..broker.messages import MARKS, READ
from ..pool import shutdown
from ..prompt.parked import Parked
from ..redis.patience import OUR_REDIS, patiently
from ..results.entry import JSONResult
from .app import app
from .runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.wire.kinds import JobKind, Kind

    from ..pool.app import Task

__all__ = ["TASKS"]


# `is_prompt`: workers/celery/request.py.
_OPTIONS: dict[str, Any] = {
    "bind": True,
    "acks_late": True,
    "throws": (JobFailed,),
    "is_prompt": True,
    "Strategy": "workers.celery.fast_path:strategy",
}


def _task(kind: Kind) -> Task:
    async def answer(self: Task, *args: Any, **kwargs: Any) -> JSONResult:
        return await _answer(self, kind.name, args, kwargs)

    answer.__name__ = kind.name
    answer.__doc__ = f"Answer {kind.noun}: `PromptResult.to_dict()`, or the `JobFailed` that names the error's code."
    return cast("Task", app.task(name=kind.task, **_OPTIONS)(answer))


TASKS: Final[dict[JobKind, Task]] = {name: _task(kind) for name, kind in KINDS.items()}


async def _answer(task: Task, kind: JobKind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> JSONResult:
    pipeline = current()
    request = task.request
    delivery = request.delivery_info or {}
    if redelivered := bool(delivery.get("redelivered")):
        await _stop_if_ended(task, request)
    queue = delivery.get("routing_key") or QUEUE
    held: list[object] = []
    marks = (request.properties or {}).get(MARKS, {})
    result = await pipeline.handle(
        kind,
        request.id,
        args,
        kwargs,
        group=request.group,
        queue=queue,
        parked=marks.get("memory"),
        held=held,
        read=marks.get(READ),
        redelivered=redelivered,
    )
    if marks.get("suspected_double_payment"):
        result = replace(result, suspected_double_payment=True)
    if not result.ok:
        raise JobFailed.of(result)
    # Our client alone sends positional arguments. Who reads the results of other producers, nobody knows.
    return JSONResult(result.to_dict(), compressible=bool(args), held=held or None)


async def _stop_if_ended(task: Task, request: Any) -> None:
    """A job that comes again may have ended: its worker died between storing the result and saying so.

    The stored result is the journal of what was paid for, so the job waits until Redis shows it. Raises Ignore, and so
    takes the message off the queue; Parked when the worker is to stop before Redis has answered.
    """
    backend = task.backend
    meta = await _asked("a question about results", backend.get_task_meta, request.id, cache=False)
    if meta["status"] not in READY_STATES:
        return
    if request.chord:
        # Its chord may not have been told; told twice, Celery counts it once.
        await _asked("a chord's part", backend.on_chord_part_return, request, meta["status"], meta["result"])
    raise Ignore("the job had ended already")


async def _asked(wanted: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    async def ask() -> Any:
        try:
            return await asyncio.to_thread(call, *args, **kwargs)
        except OUR_REDIS:
            if shutdown.has_begun():
                raise Parked(0.0, "Redis is away, and the worker stops") from None  # due at once, for another
            raise

    return await patiently(ask, wanted)
