"""Submit prompt jobs and read their results, from a web app, a script or a notebook. Start reading here.

::

    async with PromptQueue("redis://localhost:6379/0") as queue:
        job = await queue.submit(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
        answer = await job.result(timeout_s=30)
        print(answer.text)

The way of a submission: `request.py` checks it, `message.py` makes it a Celery message, `submitting.py` stores it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import cached_property
from typing import Any, Final, Self
from uuid import uuid4

from .blocking import SyncQueue
from .embedding import Texts, embedding_rows
from .jobs import Group, Job, Rows
from .redis.address import Address
from .store.job_store import Store
from .store.place import Place
from .store.redis_store import RedisStore
from .submission import submits
from .wire.redis_keys import GROUP_ID_PREFIX
from .wire.request import DEFAULT_MAX_JOB_BYTES, NewJob, check_group_id, check_id, check_size, new_job

__all__ = ["PromptQueue"]

_DEFAULT_URL: Final = "redis://localhost:6379/0"


class PromptQueue:
    """A queue of prompt jobs in Redis. Making one connects to nothing.

    `url` is where jobs go and, unless `result_url` says otherwise, where results come from: redis://, rediss://,
    unix:// or sentinel:// (`address.py` has their forms). A call takes at most `timeout_s` before it raises
    QueueUnavailable; waiting for results rides out an outage of Redis of up to `outage_s`. `key_prefix` is the
    broker's `global_keyprefix`, `result_key_prefix` that of the result backend. A job may take up to
    `max_job_bytes` as JSON.

    One queue serves several event loops, one after another or in threads, with connections of their own;
    `queue.sync` is the same queue with blocking calls. Close with `aclose()`, or use `async with`.
    """

    def __init__(
        self,
        url: str = _DEFAULT_URL,
        *,
        result_url: str | None = None,
        timeout_s: float = 5.0,
        outage_s: float = 60.0,
        key_prefix: str = "",
        result_key_prefix: str = "",
        max_job_bytes: int = DEFAULT_MAX_JOB_BYTES,
    ) -> None:
        broker = Address.of(url)
        place = Place(
            broker=broker,
            results=Address.of(result_url) if result_url else broker,
            timeout_s=timeout_s,
            outage_s=outage_s,
            key_prefix=key_prefix,
            result_key_prefix=result_key_prefix,
        )
        self._setup(f"{broker}", lambda: RedisStore(place), max_job_bytes)

    def _setup(self, place: str, make_store: Callable[[], Store], max_job_bytes: int) -> None:
        self._place = place
        self._make_store = make_store
        self._max_job_bytes = max_job_bytes
        self._stores: dict[asyncio.AbstractEventLoop, _OpenStore] = {}

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """From PROMPTMILL_REDIS_URL, or PROMPTMILL_BROKER_URL and PROMPTMILL_RESULT_URL where they differ.

        Also reads PROMPTMILL_KEY_PREFIX. `options` are the constructor's, and come first.
        """
        url = os.environ.get("PROMPTMILL_REDIS_URL") or _DEFAULT_URL
        found = {
            "url": os.environ.get("PROMPTMILL_BROKER_URL") or url,
            "result_url": os.environ.get("PROMPTMILL_RESULT_URL") or url,
            "key_prefix": os.environ.get("PROMPTMILL_KEY_PREFIX", ""),
        }
        return cls(**(found | options))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._place})"

    @submits
    async def submit(self, **job: Any) -> Job:
        """Store one job, a chat with `messages` or an embedding with `input`; returns when Redis has it.

        Our options: `id`, your own, and then submitting again changes nothing and returns the same job; `kind`, of
        work: other than those two, `respond`, `complete` and `moderate` below say it; `priority`;
        `deadline_s`: without an answer this long after submission, the job expires; `delay_s`: not before this long
        after submission; `tenant`: tenants whose jobs wait for a limit take turns, and another tenant's id is refused;
        `metadata`: any JSON, comes back in the result; `max_attempts`: calls to the provider, at most;
        `repeat_timeouts`: whether a call that was sent and timed out, and so may be paid for, is made again, None
        leaves it to the workers' catalogue; `schema`: the JSON Schema that the answer has to fit, and `repair`: how
        many further calls one that fits may cost; `fallbacks`: models to ask in turn where the job's own can't answer,
        and `fallback_on`: what leads to them beyond what does so by itself, None leaves both to the catalogue; `tag`: a
        word for the rules of a route; `cache_ttl_s`: how long its answer may serve equal prompts, and how old one may
        be that serves it, 0 for none, None leaves it to the workers; `sample`: which of several answers to one prompt
        it wants; `too_long`: what becomes of an embedding's inputs that are longer than the model takes, `reject`,
        `truncate` or `split`; `stream`: whether somebody is going to read the answer as it comes, with `job.stream()`.
        All else goes to the provider untouched; `extra_body` is for fields of the provider's that are named like ours
        (`metadata`).

        Raises InvalidJob, UnknownModel, IdTaken, QueueFull, or, within `timeout_s`, QueueUnavailable; nothing blocks
        the event loop.
        """
        new_job, store = self._new_job(**job), await self._store()
        await store.submit(new_job, group=None)
        return Job(new_job.id, self._store, just_submitted=True, streams=new_job.streams)

    async def respond(self, *, model: str, input: str | Sequence[Any], **job: Any) -> Job:  # noqa: A002
        """Store a request of the Responses API: `submit` with `kind="respond"`. The result's `text` is what OpenAI's
        clients call `output_text`, and its `response` the whole response."""
        return await self.submit(kind="respond", model=model, input=input, **job)

    async def complete(self, *, model: str, prompt: str | Sequence[Any], **job: Any) -> Job:
        """Store a request of the older API for completions, of one prompt or of several: `submit` with
        `kind="complete"`. The result's `text` is that of the first choice."""
        return await self.submit(kind="complete", model=model, prompt=prompt, **job)

    async def moderate(self, *, model: str, input: str | Sequence[Any], **job: Any) -> Job:  # noqa: A002
        """Store a request for moderation: `submit` with `kind="moderate"`. The verdicts are in the result's
        `response["results"]`, one for each input."""
        return await self.submit(kind="moderate", model=model, input=input, **job)

    def _new_job(self, **arguments: Any) -> NewJob:
        return check_size(new_job(**arguments), self._max_job_bytes)

    async def submit_many(self, rows: Rows) -> Group:
        """Submit each row, a dict of `submit`'s arguments, as one group. Memory stays the same for any number.

        `rows` is any iterable or async iterable. A row that can't be submitted raises, with its number; the rows
        before it stay submitted in a closed group that a note on the error names.
        """
        group = self.new_group()
        try:
            await group.extend(rows)
        finally:  # after an error too, so that whoever reads the group comes to an end
            await group.close()
        return group

    async def embed_many(self, texts: Texts, *, model: str, texts_per_job: int = 1, **job: Any) -> Group:
        """Embed any number of texts as one group. Memory stays the same for any number.

        `texts` is any iterable or async iterable. Each is a job of its own, and the workers send many in one call;
        with `texts_per_job` that many are one job, which is less work for Redis, and all fail where one does. `job`
        are further arguments of `submit`. The results' `metadata["index"]` tells the place of a job's first text::

            group = await queue.embed_many(texts, model="text-embedding-3-small")
            async for result in group.as_completed():
                vectors[result.metadata["index"]] = result.response["data"][0]["embedding"]
        """
        return await self.submit_many(embedding_rows(texts, texts_per_job=texts_per_job, model=model, **job))

    def new_group(self, id: str | None = None) -> Group:  # noqa: A002 - the name that the interface promises
        """A group to fill step by step: `submit` and `extend`, then `close`. With an id, continues an existing one."""
        return self.group(uuid4().hex if id is None else id)

    def group(self, id: str) -> Group:  # noqa: A002 - the name that the interface promises
        """The group of this id; asks nobody. Group ids begin with "pmg-", which is added where it is missing.

        Raises InvalidJob for an id with a colon: a group has further keys, whose names go on after one.
        """
        group_id = id if id.startswith(GROUP_ID_PREFIX) else GROUP_ID_PREFIX + id
        return Group(check_group_id(group_id), self._store, self._new_job)

    def job(self, id: str) -> Job:  # noqa: A002 - the name that the interface promises
        """The job of this id; asks nobody. Any producer's job will do, once a worker has taken it."""
        return Job(check_id(id), self._store)

    async def forget(self, *ids: str) -> None:
        """Delete the results and records of jobs that have ended, before they expire by themselves."""
        store = await self._store()
        await store.forget([check_id(job_id) for job_id in ids])

    @cached_property
    def sync(self) -> SyncQueue:
        """The same queue with blocking calls, for Django, Flask and scripts. Not on an event loop's thread."""
        return SyncQueue(self)

    async def _store(self) -> Store:
        """The store of the running loop, opened at the first use."""
        loop = asyncio.get_running_loop()
        open_store = self._stores.get(loop)
        if open_store is None:
            self._stores = {old: kept for old, kept in self._stores.items() if not old.is_closed()}
            open_store = self._stores[loop] = _OpenStore(self._make_store())
            await open_store.close_with_loop()
        return open_store.store

    async def aclose(self) -> None:
        """Close this event loop's connections, and the thread of `queue.sync`. The queue can be used again."""
        if "sync" in self.__dict__:
            await asyncio.to_thread(self.sync.close)
        await self._close_store()

    async def _close_store(self) -> None:
        if (open_store := self._stores.pop(asyncio.get_running_loop(), None)) is not None:
            await open_store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _OpenStore:
    """A store that is closed at the latest when its event loop ends.

    `asyncio.run` closes pending async generators before the loop: the one hook it offers, and reason enough for
    one. Without it a second `asyncio.run` with the same queue would leave sockets to the garbage collector.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._until_loop_ends = self._closer()

    async def close_with_loop(self) -> None:
        await anext(self._until_loop_ends)

    async def _closer(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.store.aclose()

    async def aclose(self) -> None:
        await self._until_loop_ends.aclose()
