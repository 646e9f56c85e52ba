"""Celery's Redis result backend, with the results of many jobs in one round trip.

The records, their keys and the PUBLISH are Celery's, so that any Celery client reads them. What differs is how a worker
writes them: jobs on the pool's loop put theirs in a batch and wait for it without blocking the loop; one script writes
the batch, refuses what comes from a worker that has lost its lease, and moves the counters of the jobs' groups with it.

Selected by `result_backend = "workers.results:Backend+redis://..."`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from celery import states
from celery.app.task import Context
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC
from celery.backends.redis import RedisBackend
from celery.backends.redis import SentinelBackend as CelerySentinelBackend
from celery.exceptions import BackendStoreError, TaskRevokedError
from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import url_to_parts
from redis import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from tasks import keys
from tasks.connection import Unreplicated
from tasks.errors import JobFailed
from tasks.outcome import is_end
from tasks.sentinel import MasterPool

from .bridge import in_job, offload, offload_patiently, wait
from .patience import RETRY_S, will_pass

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from celery import Celery

    from tasks.sentinel import Sentinels

__all__ = ["Backend", "JSONResult", "SentinelBackend", "lifespan"]

logger = logging.getLogger("promptmill.results")

SCRIPT = Path(__file__).with_name("results.lua").read_text(encoding="utf-8")
CLAIM_SCRIPT = Path(__file__).with_name("claim.lua").read_text(encoding="utf-8")
ENDED_SCRIPT = Path(__file__).with_name("ended.lua").read_text(encoding="utf-8")

CLAIM_MS = 10_000
"""After this long the worker that was ending a cancelled job is taken for dead. Also in workers/broker/sweep.lua."""

BATCH_SIZE = 500
"""Results in one script call at most: about 1 MB of answers, a few milliseconds of Redis's time."""

SMALL_BATCH = 8

BUSY_RATE_PER_S = 1_000
LINGER_S = 0.004
"""Above so many results a second, a batch waits so long for company; below, it would wait for nobody."""

BATCH_BYTES = 2 * 1024 * 1024
"""And a batch ends when it has so many: what comes later must not wait for megabytes."""

HUGE_BYTES = 256 * 1024
"""A record from this size on is compressed aside and sent beside the batches, so that small ones overtake it."""

TRIAL_BYTES = 64 * 1024
WORTH_IT = 0.7
"""A record of which the first part does not shrink so far is stored as it is. Random base64 shrinks to 0.77, at 46 ms a
MB; vectors in text to 0.49, at 20 ms."""

COMPRESSION_LEVEL = 1
"""1.1 ms for 100 KB of vectors or of text, to 0.43 and 0.40 of their size; zlib's default takes five times as long to
get to 0.38 and 0.34."""

_COMPRESSED = COMPRESSED_PAYLOAD_MAGIC + b"application/x-gzip\0"
"""How Celery 5.7 marks a compressed record (celery/backends/base.py, `compress_payload`); kombu's name for zlib."""

REPLICA_MS = 2_000
"""How long a replica may take to say that it has results, before they are written again."""

SETTING_TTL_S = 30.0

CANCELLED = "cancelled"
_COUNTERS = {states.SUCCESS: "succeeded", states.FAILURE: "failed", states.REVOKED: CANCELLED}


class JSONResult:
    """A task's return value that holds plain JSON types only (str keys; no dates, no UUIDs).

    The backend encodes it with orjson, several times as fast as kombu's encoder. It is no dict, because Celery writes
    the content of every dict that a task returns into logs and events (celery/utils/saferepr.py), and takes 50 us to.

    `compressible`: whoever reads it knows compressed records, as our client does, and Celery from 5.7 on. `held`: kept
    for as long as the value is in memory. Of a large one only the record is, once there is one (`keep_record`).
    """

    __slots__ = ("_value", "compressible", "held", "record")

    def __init__(self, value: dict[str, Any], *, compressible: bool = False, held: object = None) -> None:
        self._value: dict[str, Any] | None = value
        self.compressible = compressible
        self.held = held
        self.record: bytes | None = None

    @property
    def value(self) -> dict[str, Any]:
        """What the task returned; read from its record where only that was kept."""
        if self._value is not None:
            return self._value
        record = self.record or b""
        if record.startswith(_COMPRESSED):
            record = zlib.decompress(record.removeprefix(_COMPRESSED))
        value: dict[str, Any] = orjson.loads(record)["result"]
        return value

    def keep_record(self, record: bytes) -> None:
        """Keep the record instead of the value, which may be several times as large in memory."""
        self._value, self.record = None, record

    def __json__(self) -> dict[str, Any]:
        """What kombu's encoder writes for it: the next task of a chain is given the dict."""
        return self.value

    def __repr__(self) -> str:
        return "<JSON hidden>" if self._value is None else f"<{len(self._value)} fields hidden>"


class Entry(NamedTuple):
    """One job's outcome on its way to Redis."""

    key: str
    record: bytes | str
    is_end: bool
    counter: str
    job_id: str
    group_id: str | None
    tag: str
    """The message's delivery tag, where it is under a lease of ours."""
    is_large: bool = False
    """The record is compressed on its way, not on the loop's thread."""
    result: JSONResult | None = None
    """What keeps the record in memory besides, of one that is huge."""

    @property
    def size(self) -> int:
        """About how many bytes it is to Redis."""
        return len(self.record)

    def packed(self) -> Entry:
        """With its record compressed, if it is to be and that makes it smaller by a third at least."""
        record = self.record
        if not self.is_large or not isinstance(record, bytes):
            return self
        if len(record) > TRIAL_BYTES and len(_compressed(record[:TRIAL_BYTES])) > WORTH_IT * TRIAL_BYTES:
            return self._replace(is_large=False)
        return self._replace(record=_compressed(record), is_large=False)

    def script_keys(self, prefix: str) -> tuple[str, str, str]:
        """The KEYS of results.lua. `prefix` stands before our own keys; Celery's has it already."""
        if self.group_id is None:
            return self.key, "", ""
        return self.key, prefix + keys.group(self.group_id), prefix + keys.group_done(self.group_id)

    def script_args(self) -> tuple[bytes | str, int, str, str, str]:
        """The ARGV of results.lua."""
        return self.record, int(self.is_end), self.counter, self.job_id, self.tag


def _compressed(record: bytes) -> bytes:
    compressed: bytes = _COMPRESSED + zlib.compress(record, COMPRESSION_LEVEL)
    return compressed


class Backend(RedisBackend):  # type: ignore[misc]  # Celery publishes no types
    """Stores results in batches while a pool runs, and one by one elsewhere."""

    supports_result_compression = False  # Celery's setting for all results: the script must see a record's state
    writer: Writer | None = None
    may_be_reclaimed: Callable[[str], bool] = staticmethod(lambda tag: False)
    """Whether the worker holds a tag still: a lease that Redis does not know may be one that it has lost."""
    _asked_at = -math.inf
    _is_replica_wanted = False
    """Whether Redis takes writes only while a replica follows it, as of `_asked_at` (monotonic clock, s)."""

    def write(self, entries: Iterable[Entry]) -> list[Entry]:
        """Store outcomes, blocking. Raises redis's errors.

        Returns those that Redis refuses because it does not know their leases, and that this worker holds: it may have
        lost the leases, and the broker takes them back (reclaim.lua), so try again.
        """
        entries = list(entries)
        prefix = self._key_prefix
        ks = [key for entry in entries for key in entry.script_keys(prefix)]
        args = [arg for entry in entries for arg in entry.packed().script_args()]
        refused = self._run_script([self._leases_key, *ks], [*self._lifetimes, *args])
        early = []
        for number in refused:
            entry = entries[abs(number) - 1]
            if number < 0 and self.may_be_reclaimed(entry.tag):
                early.append(entry)
                continue
            if entry.counter != CANCELLED:  # the first to hear of a cancellation records it, the others come too late
                logger.warning("Result of %s refused: it has ended already, or is another worker's", entry.job_id)
        return early

    def _run_script(self, ks: list[str], args: list[Any]) -> list[int]:
        """Run results.lua, and raise Unreplicated unless a replica has the results too, where one is asked for.

        What the broker's own Redis has lost its workers see there (verify.lua). For results in another Redis it is too
        late then: the queue has forgotten the messages, which alone could bring them back.
        """
        if self._leases_key or not self._wants_replica():
            refused: list[int] = self._script(keys=ks, args=args)
            return refused
        try:
            return self._run_replicated(ks, args)
        except NoScriptError:
            self.client.script_load(SCRIPT)
            return self._run_replicated(ks, args)

    def _run_replicated(self, ks: list[str], args: list[Any]) -> list[int]:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.evalsha(self._script.sha, len(ks), *ks, *args)
            pipe.wait(1, REPLICA_MS)
            # Not raised by the pipeline, which would write the command into the error's text.
            replies = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        refused, replicas = replies
        if not replicas:
            self._asked_at = -math.inf  # somebody may have changed the setting
            raise Unreplicated
        return list(refused)

    def _wants_replica(self) -> bool:
        if time.monotonic() - self._asked_at > SETTING_TTL_S:
            try:
                self._is_replica_wanted = "min_slaves_good_slaves" in self.client.info("replication")
            except ResponseError:
                self._is_replica_wanted = False  # a user who may not ask
            self._asked_at = time.monotonic()
        return self._is_replica_wanted

    def have_ended(self, job_ids: Sequence[str]) -> list[bool]:
        """Which of these jobs have a result, blocking. Raises redis's errors."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.getrange(self.get_key_for_task(job_id), 0, 40)
            return [is_end(head.decode(errors="replace")) for head in pipe.execute()]

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """As Celery's. Without a request it is remote control's, about a job that this worker doesn't have."""
        if request is None and store_result:
            self.revoke([task_id], reason=reason, known_only=False)
        else:
            super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)
            self._record_ends([task_id], "expired" if reason == "expired" else CANCELLED)

    def revoke(self, job_ids: Sequence[str], *, reason: str = "revoked", known_only: bool = True) -> None:
        """Record the end of cancelled jobs that still wait, blocking. Raises redis's errors.

        A job that runs is left to its worker, which ends its call, and one that another worker is ending to that.
        `known_only`: those without a record are left too.
        """
        for start in range(0, len(job_ids), BATCH_SIZE):
            waiting = self._not_ended(job_ids[start : start + BATCH_SIZE])
            ends = [
                self._revoked(job_id, reason, group_id)
                for job_id, (job_state, group_id) in zip(waiting, self._claim(waiting), strict=True)
                if job_state == "queued" or (not job_state and not known_only)
            ]
            if ends:
                self.write(ends)
                self._record_ends([entry.job_id for entry in ends], CANCELLED)

    def _not_ended(self, job_ids: Sequence[str]) -> list[str]:
        return [job_id for job_id, has_ended in zip(job_ids, self.have_ended(job_ids), strict=True) if not has_ended]

    def _claim(self, job_ids: Sequence[str]) -> list[tuple[str, str | None]]:
        """State and group of each job, from its record; those that wait are this worker's to end."""
        if not job_ids:
            return []
        with self._broker_client() as client:
            reply = client.register_script(CLAIM_SCRIPT)(keys=self._records(job_ids), args=[CLAIM_MS])
        words = [word.decode() for word in reply]
        return [(job_state, group_id or None) for job_state, group_id in zip(words[::2], words[1::2], strict=True)]

    def _record_ends(self, job_ids: Sequence[str], job_state: str) -> None:
        with self._broker_client() as client:
            client.register_script(ENDED_SCRIPT)(keys=self._records(job_ids), args=[job_state])

    def _records(self, job_ids: Sequence[str]) -> list[str]:
        return [self._broker_prefix + keys.job(job_id) for job_id in job_ids]

    def _revoked(self, job_id: str, reason: str, group_id: str | None) -> Entry:
        error = self.encode_result(TaskRevokedError(reason), states.REVOKED)
        return self._entry(job_id, error, states.REVOKED, None, Context(group=group_id))

    @contextmanager
    def _broker_client(self) -> Iterator[Any]:
        if self._leases_key:
            yield self.client
            return
        with self.app.pool.acquire(block=True) as connection:
            yield Redis(connection_pool=connection.default_channel.pool)

    @cached_property
    def _tasks(self) -> Any:
        # The app's own property takes a lock at each look.
        return self.app.tasks

    @cached_property
    def _script(self) -> Any:
        return self.client.register_script(SCRIPT)

    @cached_property
    def _lifetimes(self) -> tuple[int | str, ...]:
        """Of results, ended groups and jobs' records, other groups; and what stands before the records' keys."""
        result_s = int(self.expires or 0)
        kept_s = max(result_s, keys.RECORD_TTL_S)
        return result_s, kept_s, max(kept_s, keys.WAITING_TTL_S), self._broker_prefix + keys.job("")

    @cached_property
    def _key_prefix(self) -> str:
        """What stands before the results, and so before the groups' keys that move with them."""
        return str(bytes_to_str(self.task_keyprefix)).removesuffix(keys.RESULT_PREFIX)

    @property
    def broker_result_prefix(self) -> str | None:
        """What stands before a job's id in its result's key; None where the broker's scripts can't see results."""
        return f"{self._key_prefix}{keys.RESULT_PREFIX}" if self._leases_key else None

    @cached_property
    def _broker_prefix(self) -> str:
        return str(self.app.conf.broker_transport_options.get("global_keyprefix", ""))

    @cached_property
    def _leases_key(self) -> str:
        """Where the broker keeps its leases, if that is the same Redis: only then one script can see both."""
        is_same = self._place == _place_of(self.app.connection_for_read())
        return self._broker_prefix + keys.LEASES if is_same else ""

    @property
    def _place(self) -> Place:
        """The results' Redis, as `_place_of` tells the broker's."""
        where = self.connparams
        database = int(where["db"] or 0)
        return (where["path"], database) if "path" in where else (where["host"], where["port"], database)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        """As Celery's. The writer's retries are its own."""
        if self.writer is None or not in_job():
            return super().store_result(task_id, result, state, traceback, request, **options)
        encoded = self.encode_result(result, state)
        wait(self.writer.put(self._entry(task_id, encoded, state, traceback, request)))
        return encoded

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        offload(self.write, [self._entry(task_id, result, state, traceback, request)])
        return result

    def _entry(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any) -> Entry:
        meta = self._meta(result, state, traceback, request)
        meta["task_id"] = task_id
        group_id = getattr(request, "group", None)
        if isinstance(result, JSONResult):
            record = orjson.dumps(meta)
            is_large = result.compressible and len(record) >= self._compress_from_bytes
        else:
            record, is_large = self.encode(meta), False
        is_huge = isinstance(result, JSONResult) and len(record) >= HUGE_BYTES
        if is_huge:
            result.keep_record(record)
        return Entry(
            key=f"{self._key_prefix}{keys.RESULT_PREFIX}{task_id}",
            record=record,
            is_end=state in states.READY_STATES,
            counter=_counter(state, result.value if isinstance(result, JSONResult) else result),
            job_id=task_id,
            group_id=group_id if group_id and keys.is_group_id(group_id) else None,
            tag=self._lease_tag(request),
            is_large=is_large,
            result=result if is_huge else None,
        )

    def _lease_tag(self, request: Any) -> str:
        """The message's tag, where it is still under a lease when its job ends."""
        task = self._tasks.get(getattr(request, "task", None))
        if task is not None and not task.acks_late:
            return ""  # taken off the queue when it began: there is nobody else who could have it
        properties = getattr(request, "properties", None) or {}
        tag = str(properties.get("delivery_tag") or "")
        return tag if tag.startswith(keys.LEASE_TAG_PREFIX) else ""

    def _meta(self, result: Any, state: str, traceback: str | None, request: Any) -> dict[str, Any]:
        """Celery's record of a result (celery/backends/base.py, `_get_result_meta`), which takes Celery 13 us."""
        if not isinstance(result, JSONResult) or self._is_extended:
            value = result.value if isinstance(result, JSONResult) else result
            meta: dict[str, Any] = self._get_result_meta(
                result=value, state=state, traceback=traceback, request=request
            )
            return meta
        meta = {
            "status": state,
            "result": result.value,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": datetime.now(UTC).isoformat(),
        }
        for name, field in (("group", "group_id"), ("parent_id", "parent_id")):
            if (value := getattr(request, name, None)) is not None:
                meta[field] = value
        return meta

    @cached_property
    def _compress_from_bytes(self) -> float:
        """From which size on a record is compressed (config/celeryconfig.py, `result_compress_from_bytes`)."""
        return self.app.conf.get("result_compress_from_bytes") or math.inf

    @cached_property
    def _is_extended(self) -> bool:
        """Whether records tell the task's name and arguments too (Celery's setting `result_extended`)."""
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def encode_result(self, result: Any, state: str) -> Any:
        if isinstance(result, JSONResult):
            return result
        encoded = super().encode_result(result, state)
        is_prompts = isinstance(encoded, dict) and "promptmill" in encoded
        return JSONResult(encoded) if is_prompts and isinstance(result, JobFailed) else encoded

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        """As Celery's, with the whole result of a failed prompt job beside the exception's text."""
        prepared = super().prepare_exception(exc, serializer)
        if isinstance(exc, JobFailed) and exc.result is not None and isinstance(prepared, dict):
            prepared["promptmill"] = exc.result.to_dict()
        return prepared

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a chord's part, without blocking the loop."""
        offload_patiently("a chord's part", super().on_chord_part_return, request, state, result, **kwargs)

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        """As Celery's, whose tracer asks for the state of a chord's other parts."""
        return offload_patiently("a question about results", super().get_task_meta, task_id, cache)

    def _call_task_errbacks(self, request: Any, exc: BaseException, traceback: Any) -> None:
        offload(super()._call_task_errbacks, request, exc, traceback)


class SentinelBackend(Backend, CelerySentinelBackend):  # type: ignore[misc]  # Celery publishes no types
    """The same behind Sentinel: the URL names one sentinel, the transport option `sentinels` all of them."""

    @property
    def _place(self) -> Place:
        return _place_behind(self._transport_options, int(self.connparams["db"] or 0))

    def _get_pool(self, **params: Any) -> MasterPool:
        del params["hosts"]
        return MasterPool(self._transport_options["sentinels"], **params)


Place = tuple[Any, ...]
"""A Redis: host, port and database, or the socket's path and database, or sentinels, master and database."""


def _place_of(broker: Any) -> Place:
    """Where a connection of kombu's leads."""
    hostname = broker.hostname or "localhost"
    if "://" in hostname:
        path = url_to_parts(hostname)
        return f"/{path.path}", int(path.query.get("virtual_host") or 0)
    database = int(str(broker.virtual_host or 0).strip("/") or 0)
    if "sentinels" in broker.transport_options:
        return _place_behind(broker.transport_options, database)
    return hostname, broker.port or 6379, database


def _place_behind(options: Mapping[str, Any], database: int) -> Place:
    sentinels: Sentinels = options["sentinels"]
    return *sorted(sentinels.hosts), sentinels.master_name, database


def _counter(state: str, result: Any) -> str:
    if state == states.FAILURE and isinstance(result, dict) and "promptmill" in result:
        return str(result["promptmill"]["status"])
    if state == states.REVOKED and isinstance(result, dict) and "expired" in (result.get("exc_message") or ()):
        return "expired"
    return _COUNTERS.get(state, "")


Waiting = tuple[Entry, "asyncio.Future[None]"]


def _never_stored(entry: Entry, exc: Exception) -> BackendStoreError:
    """What becomes of a result that Redis refuses for good: say, because its key holds something else."""
    text = f"Redis refuses this job's result for good ({exc!r}); look at the key {entry.key}"
    return BackendStoreError(text, task_id=entry.job_id)


class BatchWriter:
    """Gathers outcomes on the loop and has a thread write them, one batch at a time."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._pending: deque[Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="promptmill-results")
        self._flushing: asyncio.Task[None] | None = None
        self._closing = False
        self._rate_per_s = 0.0

    def put(self, entry: Entry, stored: asyncio.Future[None] | None = None) -> asyncio.Future[None]:
        """Add an outcome to the next batch. The future is done when Redis has it."""
        if stored is None:
            stored = asyncio.get_running_loop().create_future()
        self._pending.append((entry, stored))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return stored

    async def aclose(self) -> None:
        """Write what is left, or give up on it if Redis does not take it now."""
        self._closing = True
        if self._flushing is not None:
            await self._flushing
        self._thread.shutdown()

    async def _flush(self) -> None:
        try:
            while self._pending:
                if self._rate_per_s > BUSY_RATE_PER_S and not self._closing:
                    await asyncio.sleep(LINGER_S)
                started = time.monotonic()
                batch = self._next_batch()
                await self._store(batch)
                self._measure(len(batch), time.monotonic() - started)
        finally:
            self._flushing = None

    async def _store(self, batch: list[Waiting]) -> None:
        try:
            await self._write([entry for entry, _ in batch])
        except Exception as exc:  # noqa: BLE001 - whatever it is, a job waits for its result to be stored
            if len(batch) > 1:
                # One result that Redis will never take must not keep the others: find it.
                for waiting in batch:
                    await self._store([waiting])
                return
            entry, stored = batch[0]
            if not stored.done():
                stored.set_exception(_never_stored(entry, exc))
        else:
            for _, stored in batch:
                if not stored.done():
                    stored.set_result(None)

    def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        room, n = BATCH_BYTES, self._batch_size()
        while self._pending and len(batch) < n and room > 0:
            batch.append(self._pending.popleft())
            room -= batch[-1][0].size
        return batch

    def _batch_size(self) -> int:
        """Half of what waits. One batch for all would have their places filled anew at one moment, and so keep jobs
        of equal length in step: all ask for the processor at once, and then all wait."""
        return min(max(SMALL_BATCH, len(self._pending) // 2), BATCH_SIZE)

    def _measure(self, n: int, took_s: float) -> None:
        lingered_s = LINGER_S if self._rate_per_s > BUSY_RATE_PER_S else 0.0
        self._rate_per_s += 0.2 * (n / (took_s + lingered_s) - self._rate_per_s)

    async def _write(self, entries: list[Entry]) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                early = await loop.run_in_executor(self._thread, self.backend.write, entries)
                if not early or self._closing:
                    return
                entries = early
            except (RedisError, OSError) as exc:
                failures += 1
                if failures in {1, 10} or failures % 60 == 0:
                    logger.warning("Redis does not take results (%r); %d wait, trying again", exc, len(entries))
                if self._closing or not will_pass(exc):
                    raise
            await asyncio.sleep(RETRY_S)


class Writer:
    """Writes outcomes in batches, and huge ones beside them."""

    def __init__(self, backend: Backend) -> None:
        self._batches, self._huge = BatchWriter(backend), BatchWriter(backend)
        self._compressor = ThreadPoolExecutor(1, thread_name_prefix="promptmill-compressor")
        self._packing: set[asyncio.Task[None]] = set()

    def put(self, entry: Entry) -> asyncio.Future[None]:
        """Store an outcome. The future is done when Redis has it."""
        if entry.size < HUGE_BYTES:
            return self._batches.put(entry)
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        packing = asyncio.create_task(self._put_huge(entry, stored))
        self._packing.add(packing)
        packing.add_done_callback(self._packing.discard)
        return stored

    async def _put_huge(self, entry: Entry, stored: asyncio.Future[None]) -> None:
        packed = await asyncio.get_running_loop().run_in_executor(self._compressor, entry.packed)
        if entry.result is not None and isinstance(packed.record, bytes):
            entry.result.keep_record(packed.record)
        self._huge.put(packed, stored)

    async def aclose(self) -> None:
        """Write what is left, or give up on it if Redis does not take it now."""
        if self._packing:
            await asyncio.wait(self._packing)
        await self._batches.aclose()
        await self._huge.aclose()
        self._compressor.shutdown()


@asynccontextmanager
async def lifespan(app: Celery) -> AsyncIterator[None]:
    """Give the app's backend a writer while the pool runs."""
    backend = app.backend
    if not isinstance(backend, Backend):
        yield
        return
    backend.writer = writer = Writer(backend)
    try:
        yield
    finally:
        backend.writer = None
        await writer.aclose()
