"""Jobs on their way into the queue: those submitted at the same time share a round trip."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from ..errors import InvalidJob, PromptmillError
from ..redis.cancellation import within
from ..redis.connection import RedisConnection, ScriptRunner
from ..redis.script import Script
from ..wire import redis_keys
from ..wire.kinds import TASK_NAMES
from ..wire.message import CELERY_PRIORITY, Envelope, queue_keys
from ..wire.request import NewJob, id_taken
from .batching import Batcher
from .place import Place
from .terms import Writer

__all__ = ["Submissions"]

T = TypeVar("T")

SUBMIT: Final = Script.read(Path(__file__).with_name("lua"), "submit")

_MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Of one script call: Redis runs nothing else meanwhile, and both sides hold a copy."""

_LIST_NUMBER: Final = {priority: number for number, priority in enumerate(CELERY_PRIORITY, start=1)}

_CLOSED: Final = -1
"""What submit.lua returns for a closed group."""

_WRONG_TIME: Final = -2
"""What it returns to a client that takes Redis's clock for another than it is."""


class _Submission(NamedTuple):
    job: NewJob
    group: str | None
    reply: asyncio.Future[Exception | None]


class Submissions:
    """Those of one event loop. All methods raise `QueueUnavailable`."""

    def __init__(self, broker: RedisConnection, writer: Writer, place: Place) -> None:
        self._broker = broker
        self._writer = writer
        self._place = place
        self._script = ScriptRunner(broker.redis, SUBMIT)
        self._result_prefix = "" if place.is_apart else place.result("")  # as submit.lua takes it
        self._envelope = Envelope()
        self._queues = queue_keys(place.key_prefix)
        self._batcher = Batcher(self._send_submissions)

    async def submit(self, job: NewJob, *, group: str | None) -> None:
        """One job. Those submitted at the same time share a round trip and a connection."""
        async with self._broker.border(advice=_again(job.id)):
            await self._writer.check_models([job])
            submission = _Submission(job, group, asyncio.get_running_loop().create_future())
            self._batcher.add(submission)
            error = await submission.reply
        if error is not None:
            raise self._refusal(error, job.id) from error

    def _refusal(self, error: Exception, job_id: str) -> PromptmillError:
        # Those who shared the call share the error; each raises its own, or their tracebacks would pile up in one.
        if isinstance(error, PromptmillError):
            return type(error)(str(error))
        return self._broker.translated(error, _again(job_id))

    async def submit_many(self, jobs: Sequence[NewJob], *, group: str) -> None:
        """Many jobs of one group, in calls of a few megabytes at most."""
        first = 0
        for part in _parts(jobs, job_of=lambda job: job):
            async with self._broker.border(advice=_again(part[0].id)):
                await self._writer.check_models(part)
                if taken := await self._send(part, group=group):
                    raise id_taken(part[taken[0]].id, index=first + taken[0])
            first += len(part)

    async def _send_submissions(self, submissions: list[_Submission]) -> None:
        wanted = [submission for submission in submissions if not submission.reply.done()]
        for group in dict.fromkeys(submission.group for submission in wanted):
            members = [submission for submission in wanted if submission.group == group]
            for part in _parts(members, job_of=lambda submission: submission.job):
                await self._send_part(part, group)

    async def _send_part(self, part: list[_Submission], group: str | None) -> None:
        error: Exception | None = None
        try:
            with within(self._place.timeout_s):
                while taken := await self._send([submission.job for submission in part], group=group):
                    # The callers who share the call are not to blame.
                    for index in taken:
                        _reply(part[index], id_taken(part[index].job.id))
                    part = [submission for index, submission in enumerate(part) if index not in taken]
        except Exception as caught:  # noqa: BLE001 - handed to those who wait, each of whom raises it
            error = caught
        for submission in part:
            _reply(submission, error)

    async def _send(self, jobs: Sequence[NewJob], *, group: str | None) -> list[int]:
        """Which of the jobs have ids of other tenants; if one has, none is enqueued."""
        if not jobs:
            return []
        while (reply := await self._enqueue(jobs, group)) == _WRONG_TIME:
            self._writer.forget_terms()
        if reply == _CLOSED:
            raise InvalidJob(f"group: {group} is closed; open another one with queue.new_group()")
        return [number - 1 for number in reply] if isinstance(reply, list) else []

    async def _enqueue(self, jobs: Sequence[NewJob], group: str | None) -> int | list[int]:
        """What submit.lua returns."""
        now_s = (await self._writer.terms()).now_s()
        script_keys = [
            *(*self._queues, *self._place.group(group)),
            *(self._place.key(redis_keys.CANCELLED), self._place.key(redis_keys.FORGOTTEN)),
            *(self._place.record(job.id) for job in jobs),
        ]
        messages = [self._envelope.render(job, group=group, now_s=now_s) for job in jobs]
        rows = json.dumps([*map(_row, jobs)])
        ours: list[str | int] = [group or "", rows, self._result_prefix, f"{now_s:.3f}"]
        reply: int | list[int] = await self._writer.write(self._script, script_keys, [*ours, *messages])
        return reply

    async def aclose(self) -> None:
        """Wakes whoever waits, with CancelledError."""
        await self._batcher.aclose()


def _row(job: NewJob) -> tuple[str | int, ...]:
    number, delay_ms = _LIST_NUMBER[job.priority], round(job.delay_s * 1000)
    return job.id, number, TASK_NAMES[job.kind], job.model, job.tenant, delay_ms, int(job.may_be_known)


def _reply(submission: _Submission, error: Exception | None) -> None:
    if not submission.reply.done():
        submission.reply.set_result(error)


def _again(job_id: str) -> str:
    return f"Whether job {job_id} was stored is not known: submit it again with this id, and it is stored once at most."


def _parts(items: Sequence[T], *, job_of: Callable[[T], NewJob]) -> Iterator[list[T]]:
    part: list[T] = []
    size_bytes = 0
    for item in items:
        item_bytes = job_of(item).size_bytes
        if part and size_bytes + item_bytes > _MAX_BATCH_BYTES:
            yield part
            part, size_bytes = [], 0
        part.append(item)
        size_bytes += item_bytes
    if part:
        yield part
