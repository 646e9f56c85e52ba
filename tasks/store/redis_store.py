"""Jobs kept in Redis, as one event loop sees them: its connections, its clock, its view of the models."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from redis.exceptions import ResponseError

from ..errors import InvalidJob, PromptmillError, QueueUnavailable
from ..redis.address import Address
from ..redis.cancellation import within
from ..redis.clock import steady_s
from ..redis.connection import RedisConnection, ScriptRunner, Unreplicated
from ..redis.script import Script
from ..results import PromptResult
from ..wire import redis_keys
from ..wire.message import CELERY_PRIORITY, TASK_NAMES, Envelope, queue_keys, revoke_channel, revoke_message
from ..wire.record import decoded, failure, is_end
from ..wire.request import NewJob, check_model, id_taken
from .batching import Batcher
from .job_store import GroupEntry, GroupPage, GroupProgress, Sighting
from .waiting import ResultWaiter

__all__ = ["RedisStore", "StoreSettings"]

T = TypeVar("T")

_LUA: Final = Path(__file__).with_name("lua")
SUBMIT: Final = Script.read(_LUA, "submit")
CANCEL: Final = Script.read(_LUA, "cancel")
CLOSE_GROUP: Final = Script.read(_LUA, "close_group")
FORGET: Final = Script.read(_LUA, "forget")
READ_RESULTS: Final = Script.read(_LUA, "read_results")

_TERMS_TTL_S: Final = 30.0
_MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Of one script call: Redis runs nothing else meanwhile, and both sides hold a copy."""

_PAGE_BYTES: Final = 4 * 1024 * 1024
"""Of stored results that are read at once: some 3 ms of Redis's time, and 1 s on a link of 32 Mbit/s. On a slower link
pages that came too late are halved, down to the least, and grow again by an eighth each."""
_LEAST_PAGE_BYTES: Final = 64 * 1024
_PAGE_ENTRIES: Final = 500

_LIST_NUMBER: Final = {priority: number for number, priority in enumerate(CELERY_PRIORITY, start=1)}
_TOLD_AT_ONCE: Final = 100
"""Of more cancelled jobs than this, workers hear at once only of those that run; of the others with a heartbeat."""

_CLOSED: Final = -1
"""What submit.lua returns for a closed group."""

_WRONG_TIME: Final = -2
"""What it returns to a client that takes Redis's clock for another than it is."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where, and how patiently. `outage_s` is how long those who wait for results ride out an outage."""

    broker: Address
    results: Address
    timeout_s: float
    outage_s: float
    key_prefix: str
    result_key_prefix: str


@dataclass(slots=True)
class _Terms:
    """What a submission has to know: Redis's clock against our steady one, and the models offered (None: not known).

    `wants_replica`: Redis takes writes only while a replica follows it: what it says it has, a replica must have too.
    """

    clock_offset_s: float
    models: frozenset[str] | None
    wants_replica: bool
    read_at_s: float


class _Submission(NamedTuple):
    job: NewJob
    group: str | None
    reply: asyncio.Future[Exception | None]


class RedisStore:
    """See `Store`. Belongs to the event loop on which it is made."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._broker = RedisConnection(settings.broker, timeout_s=settings.timeout_s)
        apart = settings.results != settings.broker
        self._results = RedisConnection(settings.results, timeout_s=settings.timeout_s) if apart else self._broker
        self._submit_script = ScriptRunner(self._broker.redis, SUBMIT)
        self._cancel_script = ScriptRunner(self._broker.redis, CANCEL)
        self._close_group_script = ScriptRunner(self._broker.redis, CLOSE_GROUP)
        self._forget_script = ScriptRunner(self._broker.redis, FORGET)
        self._read_results_script = ScriptRunner(self._results.redis, READ_RESULTS, decodes=False)
        self._result_prefix = "" if apart else self._result_key("")  # as submit.lua takes it
        self._envelope = Envelope()
        self._queues = queue_keys(settings.key_prefix)
        self._terms: _Terms | None = None
        self._reading_terms = asyncio.Lock()
        self._page_bytes = _PAGE_BYTES
        self._submissions = Batcher(self._send_submissions)
        self.outage_s = settings.outage_s
        self._waiter = ResultWaiter(
            self._results,
            channel_prefix=settings.result_key_prefix + redis_keys.RESULT_PREFIX,
            look=self._look_at,
            outage_s=settings.outage_s,
        )

    # -- submission

    async def submit(self, job: NewJob, *, group: str | None) -> None:
        """One job. Those submitted at the same time share a round trip and a connection."""
        async with self._broker.border(advice=_again(job.id)):
            check_model(job, (await self._current_terms()).models)
            submission = _Submission(job, group, asyncio.get_running_loop().create_future())
            self._submissions.add(submission)
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
                models = (await self._current_terms()).models
                for job in part:
                    check_model(job, models)
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
            with within(self._settings.timeout_s):
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
            self._terms = None
        if reply == _CLOSED:
            raise InvalidJob(f"group: {group} is closed; open another one with queue.new_group()")
        return [number - 1 for number in reply] if isinstance(reply, list) else []

    async def _enqueue(self, jobs: Sequence[NewJob], group: str | None) -> int | list[int]:
        """What submit.lua returns."""
        now_s = steady_s() + (await self._current_terms()).clock_offset_s
        script_keys = [
            *(*self._queues, *self._group_keys(group)),
            *(self._key(redis_keys.CANCELLED), self._key(redis_keys.FORGOTTEN)),
            *(self._record_key(job.id) for job in jobs),
        ]
        messages = [self._envelope.render(job, group=group, now_s=now_s) for job in jobs]
        rows = json.dumps([*map(_row, jobs)])
        ours: list[str | int] = [group or "", rows, self._result_prefix, f"{now_s:.3f}"]
        reply: int | list[int] = await self._write(self._submit_script, script_keys, [*ours, *messages])
        return reply

    async def _write(self, script: ScriptRunner, script_keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run a script, and have what it writes at a replica too before anybody is told, where Redis asks for one.

        Waits for that a third of `timeout_s` at most, or a silent Redis would look alike: it may have to wait twice, if
        Redis does not know the script.
        """
        wait_s = self._settings.timeout_s / 3 if (await self._current_terms()).wants_replica else 0.0
        try:
            return await script(script_keys, args, wait_ms=math.ceil(wait_s * 1000))
        except Unreplicated:
            self._terms = None  # somebody may have changed the setting
            raise

    async def _current_terms(self) -> _Terms:
        terms = self._terms
        if terms is not None and steady_s() < terms.read_at_s + _TERMS_TTL_S:
            return terms
        async with self._reading_terms:
            if self._terms is terms:
                self._terms = await self._read_terms()
        assert self._terms is not None
        return self._terms

    async def _read_terms(self) -> _Terms:
        before_s = steady_s()
        async with self._broker.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(self._key(redis_keys.MODELS), 0, -1, withscores=True)
            (seconds, microseconds), offered = await pipe.execute()
        read_s = (before_s + steady_s()) / 2
        redis_s = seconds + microseconds / 1e6
        return _Terms(
            clock_offset_s=redis_s - read_s,
            models=_fresh_models(offered, redis_s),
            wants_replica=await self._wants_replica(),
            read_at_s=steady_s(),
        )

    async def _wants_replica(self) -> bool:
        try:
            info = await _answer(self._broker.redis.info("replication"))
        except ResponseError:
            return False  # a user who may not ask
        return "min_slaves_good_slaves" in info  # told where min-replicas-to-write is set

    # -- jobs

    async def look(self, job_id: str) -> Sighting:
        """One job's result and state."""
        [sighting] = [sighting async for _, sighting in self._look_at([job_id])]
        return sighting

    async def _look_at(self, job_ids: Sequence[str]) -> AsyncIterator[tuple[str, Sighting]]:
        # The records first: a job that ends in between has a result then, and is not taken for unknown.
        async with self._broker.border(), self._broker.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(self._record_key(job_id), "state")
            states = await pipe.execute()
        start = 0
        while start < len(job_ids):
            for result in await self.result_page(job_ids[start:]):
                state = states[start]
                yield job_ids[start], Sighting(result or _recorded_end(job_ids[start], state), state)
                start += 1

    async def results(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        """Of all of them, however much they take in memory."""
        found: list[PromptResult | None] = []
        while len(found) < len(job_ids):
            found += await self.result_page(job_ids[len(found) :])
        return found

    async def result_page(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        """Read with one script, which ends at a number of bytes."""
        result_keys = [self._result_key(job_id) for job_id in job_ids[:_PAGE_ENTRIES]]
        try:
            async with self._results.border():
                records: list[bytes | None] = await self._read_results_script(result_keys, [self._page_bytes])
        except QueueUnavailable:
            self._page_bytes = max(_LEAST_PAGE_BYTES, self._page_bytes // 2)
            raise
        self._page_bytes = min(_PAGE_BYTES, self._page_bytes * 9 // 8)
        return [await decoded(job_id, record) for job_id, record in zip(job_ids, records, strict=False)]

    async def wait(self, job_id: str, *, timeout_s: float | None) -> PromptResult:
        """See `ResultWaiter.wait`."""
        return await self._waiter.wait(job_id, timeout_s=timeout_s)

    async def cancel(self, job_ids: Sequence[str]) -> int:
        """Notes it for the workers, which read it with their heartbeats.

        Running jobs, and a few that wait, end sooner: all workers are told, as `app.control.revoke(...,
        terminate=True)` does.
        """
        have_ended = await self._have_ended(job_ids)
        going = [job_id for job_id, has_ended in zip(job_ids, have_ended, strict=True) if not has_ended]
        if not going:
            return 0
        async with self._broker.border():
            script_keys = [self._key(redis_keys.CANCELLED), *map(self._record_key, going)]
            cancelled, running = await self._write(self._cancel_script, script_keys, going)
            told = running if len(going) > _TOLD_AT_ONCE else going
            if cancelled and told:
                channel = revoke_channel(self._settings.key_prefix, self._settings.broker.database)
                await self._broker.redis.publish(channel, revoke_message(told))
        return int(cancelled)

    async def _have_ended(self, job_ids: Sequence[str]) -> list[bool]:
        # The beginnings of the results: an answer may be megabytes.
        async with self._results.border(), self._results.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.getrange(self._result_key(job_id), 0, 40)
            return list(map(is_end, await pipe.execute()))

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Deletes results and records. A mark of cancellation stays until the id is submitted again, for a message that
        is still in the queue; so does one of a job that has ended and whose message may come back (forget.lua)."""
        if not job_ids:
            return
        ended = await self._have_ended(job_ids)
        async with self._broker.border():
            script_keys = [self._key(redis_keys.FORGOTTEN), self._key(redis_keys.LEASES)]
            script_keys += map(self._record_key, job_ids)
            args: list[str | int] = []
            for job_id, has_ended in zip(job_ids, ended, strict=True):
                args += job_id, int(has_ended)
            await self._forget_script(script_keys, args)
        async with self._results.border():
            await self._results.redis.delete(*map(self._result_key, job_ids))

    # -- groups

    async def close_group(self, group_id: str) -> int:
        """Sets the total to the number of jobs submitted."""
        async with self._broker.border():
            total = await self._write(self._close_group_script, self._group_keys(group_id), [])
        return int(total)

    async def group_progress(self, group_id: str) -> GroupProgress | None:
        """What was submitted stands at the broker, what has ended at the results: one hash unless they are apart."""
        submitted_key, ended_key = self._group_hashes(group_id)
        fields = await _hgetall(self._broker, submitted_key)
        if "total" not in fields:
            return None
        if self._is_apart(group_id):
            fields = await _hgetall(self._results, ended_key) | fields
        return _progress(fields)

    def _group_hashes(self, group_id: str) -> tuple[str, str]:
        return self._key(redis_keys.group(group_id)), self._result_side(redis_keys.group(group_id))

    def _is_apart(self, group_id: str) -> bool:
        submitted_key, ended_key = self._group_hashes(group_id)
        return self._results is not self._broker or submitted_key != ended_key

    async def group_jobs(self, group_id: str, *, start: int, count: int) -> list[str]:
        """Read from the group's list."""
        async with self._broker.border():
            ids: list[str] = await _answer(
                self._broker.redis.lrange(self._key(redis_keys.group_jobs(group_id)), start, start + count - 1)
            )
        return ids

    async def group_ended(self, group_id: str, *, after: GroupEntry | None, wait_s: float) -> GroupPage | None:
        """Read from the group's stream. Waits at most half of `timeout_s`, or a silent Redis would look alike.

        The counters and the entry `after` come over the same connection, hence from the same Redis as the entries.
        """
        submitted_key, ended_key = self._group_hashes(group_id)
        submitted = await _hgetall(self._broker, submitted_key) if self._is_apart(group_id) else {}
        stream = self._result_side(redis_keys.group_done(group_id))
        block_ms = round(min(wait_s, self._settings.timeout_s / 2) * 1000) or None
        async with self._results.border(), self._results.waiting.pipeline(transaction=False) as pipe:
            pipe.hgetall(ended_key)
            pipe.xrange(stream, *_place(after), count=1)
            pipe.xread({stream: after.position if after else "0"}, count=_PAGE_ENTRIES, block=block_ms)
            ended, anchor, streams = await pipe.execute()
        fields = ended | submitted
        if "total" not in fields:
            return None
        entries = [GroupEntry(position, fields["id"]) for _, found in streams or () for position, fields in found]
        return GroupPage(_progress(fields), entries, follows=after is None or _is_there(after, anchor))

    async def group_has(self, group_id: str, entries: Sequence[GroupEntry]) -> list[bool]:
        """Looks for each under its position."""
        stream = self._result_side(redis_keys.group_done(group_id))
        async with self._results.border(), self._results.redis.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xrange(stream, *_place(entry), count=1)
            found = await pipe.execute()
        return [_is_there(entry, there) for entry, there in zip(entries, found, strict=True)]

    async def aclose(self) -> None:
        """Wakes whoever waits, with CancelledError."""
        await self._submissions.aclose()
        await self._waiter.aclose()
        await self._broker.aclose()
        if self._results is not self._broker:
            await self._results.aclose()

    # -- keys

    def _key(self, name: str) -> str:
        return self._settings.key_prefix + name

    def _record_key(self, job_id: str) -> str:
        return self._settings.key_prefix + redis_keys.job(job_id)

    def _result_side(self, name: str) -> str:
        """Keys that the result backend writes."""
        return self._settings.result_key_prefix + name

    def _result_key(self, job_id: str) -> str:
        return self._result_side(redis_keys.result(job_id))

    def _group_keys(self, group_id: str | None) -> list[str]:
        if group_id is None:
            return ["", ""]
        return [self._key(redis_keys.group(group_id)), self._key(redis_keys.group_jobs(group_id))]


def _recorded_end(job_id: str, state: str | None) -> PromptResult | None:
    """How a job ended that was never run: its record says so for longer than its result is kept."""
    if state == "cancelled":
        return failure(job_id, "the job was cancelled", code="cancelled", status="cancelled")
    if state == "expired":
        return failure(job_id, "the job's `expires` passed before a worker took it", code="expired", status="expired")
    return None


def _row(job: NewJob) -> tuple[str | int, ...]:
    number, delay_ms = _LIST_NUMBER[job.priority], round(job.delay_s * 1000)
    return job.id, number, TASK_NAMES[job.kind], job.model, job.tenant, delay_ms, int(job.may_be_known)


def _reply(submission: _Submission, error: Exception | None) -> None:
    if not submission.reply.done():
        submission.reply.set_result(error)


def _again(job_id: str) -> str:
    return f"Whether job {job_id} was stored is not known: submit it again with this id, and it is stored once at most."


def _fresh_models(offered: Sequence[tuple[str, float]], now_s: float) -> frozenset[str] | None:
    models = frozenset(model for model, seen_s in offered if seen_s > now_s - redis_keys.MODELS_TTL_S)
    return models or None


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


async def _answer(reply: Any) -> Any:
    """redis-py types its commands for both of its clients, sync and async; this is the async one."""
    return await reply


def _progress(fields: Mapping[str, str]) -> GroupProgress:
    total = int(fields["total"])
    counts = {name: int(fields.get(name, 0)) for name in GroupProgress.__slots__ if name != "total"}
    return GroupProgress(total=total if total >= 0 else None, **counts)


def _place(entry: GroupEntry | None) -> tuple[str, str]:
    return (entry.position, entry.position) if entry else ("0", "0")


def _is_there(entry: GroupEntry, found: Sequence[tuple[str, Mapping[str, str]]]) -> bool:
    """Another Redis may have given the position to another job."""
    return any(fields.get("id") == entry.job_id for _, fields in found)


async def _hgetall(connection: RedisConnection, key: str) -> dict[str, str]:
    async with connection.border():
        fields: dict[str, str] = await _answer(connection.redis.hgetall(key))
    return fields
