"""Celery's Redis result backend, with the results of many jobs in one round trip.

The records, their keys and the PUBLISH are Celery's, so that any Celery client reads them. What differs is how a worker
writes them: jobs on the pool's loop put theirs in a batch and wait for it without blocking the loop; one script writes
the batch, refuses what comes from a worker that has lost its lease, and moves the counters of the jobs' groups with it.

Selected by `result_backend = "workers.results:Backend+redis://..."`.
"""

from __future__ import annotations

import logging
import math
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson
from celery import states
from celery.backends.redis import RedisBackend
from celery.backends.redis import SentinelBackend as CelerySentinelBackend
from kombu.utils.encoding import bytes_to_str
from redis import Redis

from tasks.errors import JobFailed
from tasks.redis.sentinel import MasterPool
from tasks.wire import redis_keys
from tasks.wire.record import is_end

from ..pool.greenlets import in_job, wait
from ..pool.threads import offload, offload_patiently
from ..redis.packer import PACKER
from .entry import Entry, JSONResult
from .names import Names
from .place import Place, place_behind, place_of
from .revocations import CANCELLED, Revocations
from .script import StoreScript
from .writer import HUGE_BYTES, Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from celery import Celery


__all__ = ["Backend", "SentinelBackend", "lifespan"]

logger = logging.getLogger("promptmill.results")

_FAILURES = {states.FAILURE, states.REVOKED}
_COUNTERS = {states.SUCCESS: "succeeded", states.FAILURE: "failed", states.REVOKED: CANCELLED}


class Backend(RedisBackend):  # type: ignore[misc]  # Celery publishes no types
    """Stores results in batches while a pool runs, and one by one elsewhere."""

    supports_result_compression = False  # Celery's setting for all results: the script must see a record's state
    writer: Writer | None = None
    may_be_reclaimed: Callable[[str], bool] = staticmethod(lambda tag: False)
    """Whether the worker holds a tag still: a lease that Redis does not know may be one that it has lost."""

    def write(self, entries: Iterable[Entry]) -> list[Entry]:
        """Store outcomes, blocking. Raises redis's errors.

        Returns those that Redis refuses because it does not know their leases, and that this worker holds: it may have
        lost the leases, and the broker takes them back (reclaim.lua), so try again.
        """
        entries = [entry.packed() if entry.is_large else entry for entry in entries]
        names = self.names
        ks = [key for entry in entries for key in entry.script_keys(names.prefix)]
        args = [arg for entry in entries for arg in entry.script_args()]
        refused = self._script([names.leases, *ks], [*names.script_args(), *args])
        early = []
        for number in refused:
            entry = entries[abs(number) - 1]
            if number < 0 and self.may_be_reclaimed(entry.tag):
                early.append(entry)
                continue
            if entry.counter != CANCELLED:  # the first to hear of a cancellation records it, the others come too late
                logger.warning("Result of %s refused: it has ended already, or is another worker's", entry.job_id)
        return early

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
            self._revocations.record_ends([task_id], "expired" if reason == "expired" else CANCELLED)

    def revoke(
        self, job_ids: Sequence[str], *, reason: str = "revoked", known_only: bool = True
    ) -> list[tuple[str, str]]:
        """As `Revocations.revoke`."""
        return self._revocations.revoke(job_ids, reason=reason, known_only=known_only)

    @cached_property
    def _revocations(self) -> Revocations:
        return Revocations(self)

    @contextmanager
    def broker_client(self) -> Iterator[Any]:
        """A client of the broker's Redis, where the jobs' records are."""
        if self.names.is_brokers:
            yield self.client
            return
        with self.app.pool.acquire(block=True) as connection:
            yield Redis(connection_pool=connection.default_channel.pool)

    @cached_property
    def _tasks(self) -> Any:
        # The app's own property takes a lock at each look.
        return self.app.tasks

    @cached_property
    def _script(self) -> StoreScript:
        return StoreScript(self.client, may_be_replicated=not self.names.is_brokers)

    @cached_property
    def names(self) -> Names:
        """The names of the keys that this backend uses."""
        return Names(
            prefix=str(bytes_to_str(self.task_keyprefix)).removesuffix(redis_keys.RESULT_PREFIX),
            broker_prefix=str(self.app.conf.broker_transport_options.get("global_keyprefix", "")),
            expires_s=int(self.expires or 0),
            is_brokers=self._place == place_of(self.app.connection_for_read()),
        )

    @property
    def _place(self) -> Place:
        """The results' Redis, as `place_of` tells the broker's."""
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
        wait(self.writer.put(self.entry(task_id, encoded, state, traceback, request)))
        return encoded

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        offload(self.write, [self.entry(task_id, result, state, traceback, request)])
        return result

    def entry(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any) -> Entry:
        """An outcome, as it is to be written. `request` may be Celery's, or a Context."""
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
            key=self.names.result(task_id),
            record=record,
            is_end=state in states.READY_STATES,
            counter=_counter(state, result),
            job_id=task_id,
            group_id=group_id if group_id and redis_keys.is_group_id(group_id) else None,
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
        return tag if tag.startswith(redis_keys.LEASE_TAG_PREFIX) else ""

    def _meta(self, result: Any, state: str, traceback: str | None, request: Any) -> dict[str, Any]:
        """Celery's record of a result (celery/backends/base.py, `_get_result_meta`), which takes Celery 13 us."""
        if not isinstance(result, JSONResult) or self.is_extended:
            value = result.value if isinstance(result, JSONResult) else result
            meta: dict[str, Any] = self._get_result_meta(
                result=value, state=state, traceback=traceback, request=request
            )
            return meta
        meta = {
            "status": state,
            "result": result.value,
            "traceback": traceback,
            # Most jobs start no other, and are not asked with three calls.
            "children": [] if getattr(request, "_children", True) is None else self.current_task_children(request),
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
    def is_extended(self) -> bool:
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

    def _create_client(self, **params: Any) -> Any:
        return super()._create_client(**params, command_packer=PACKER)

    def _call_task_errbacks(self, request: Any, exc: BaseException, traceback: Any) -> None:
        offload(super()._call_task_errbacks, request, exc, traceback)


class SentinelBackend(Backend, CelerySentinelBackend):  # type: ignore[misc]  # Celery publishes no types
    """The same behind Sentinel: the URL names one sentinel, the transport option `sentinels` all of them."""

    @property
    def _place(self) -> Place:
        return place_behind(self._transport_options, int(self.connparams["db"] or 0))

    def _get_pool(self, **params: Any) -> MasterPool:
        del params["hosts"]
        return MasterPool(self._transport_options["sentinels"], **params)


def _counter(state: str, result: Any) -> str:
    if state in _FAILURES:
        value = result.value if isinstance(result, JSONResult) else result
        if state == states.FAILURE and isinstance(value, dict) and "promptmill" in value:
            return str(value["promptmill"]["status"])
        if state == states.REVOKED and isinstance(value, dict) and "expired" in (value.get("exc_message") or ()):
            return "expired"
    return _COUNTERS.get(state, "")


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
