"""One event loop's connections to one Redis, and the border at which Redis's errors become ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.client import NEVER_DECODE

from ..errors import QueueFull, QueueUnavailable
from .address import Address
from .cancellation import within
from .script import Script
from .sentinel import MasterNotFound

__all__ = ["RedisConnection", "ScriptRunner", "Unreplicated", "answer"]

_MAX_CONNECTIONS: Final = 32
"""Commands beyond these wait for one to become free. Submissions of a loop share one (see `submitting.py`)."""


class Unreplicated(redis_errors.ConnectionError):
    """A master has what was written, and no replica said in time that it has it too."""


class RedisConnection:
    """Commands to one Redis, each call bounded by `timeout_s` however often redis-py tries."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.redis = self._client(max_connections=_MAX_CONNECTIONS)
        # A reader of a group's stream holds its connection while it waits: it must not take one from commands.
        self.waiting = self._client(max_connections=10_000)

    def _client(self, *, max_connections: int) -> Redis:
        pool = self.address.blocking_pool(
            max_connections=max_connections,
            timeout_s=self.timeout_s,
            decode_responses=True,
            encoding_errors="surrogateescape",  # a compressed result comes back as bytes (tasks/wire/record.py)
            protocol=2,
            socket_timeout=self.timeout_s,
            socket_connect_timeout=self.timeout_s,
            # A restart of Redis, or a connection closed while idle, is tried again for about half a second.
            retry=Retry(ExponentialBackoff(cap=0.25, base=0.02), retries=5),
        )
        return Redis.from_pool(pool)

    async def connect_link(self) -> AbstractConnection:
        """A bare connection of the caller's own, for pub/sub. Raises what redis-py raises."""
        pool = self.waiting.connection_pool
        link: AbstractConnection = pool.connection_class(**pool.connection_kwargs)
        await link.connect()  # type: ignore[no-untyped-call] # redis-py leaves it without types
        return link

    @asynccontextmanager
    async def border(self, *, advice: str = "") -> AsyncIterator[None]:
        """Nothing inside takes longer than `timeout_s`; what Redis raises leaves as an error of ours.

        `advice` is what the caller may do next, said after the reason.
        """
        try:
            with within(self.timeout_s):
                yield
        except (redis_errors.RedisError, OSError) as error:
            if isinstance(error, QueueUnavailable):
                raise
            raise self.translated(error, advice) from error

    def translated(self, error: Exception, advice: str = "") -> QueueUnavailable:
        """What `border` raises."""
        kind, reason = _reason(error, self.timeout_s)
        return kind(f"Redis at {self.address} {reason}{' ' if advice else ''}{advice}")

    async def aclose(self) -> None:
        """Close what is open. Never raises: there is nothing that a caller could do about it."""
        for client in (self.redis, self.waiting):
            try:
                await client.aclose(close_connection_pool=True)
            except (redis_errors.RedisError, OSError):
                continue


async def answer(reply: Any) -> Any:
    """redis-py types its commands for both of its clients, sync and async; this is the async one."""
    return await reply


class ScriptRunner:
    """Runs a script by its digest; loads it again when Redis has forgotten it.

    `decodes`: texts of its reply are str, not bytes.
    """

    def __init__(self, redis: Redis, script: Script, *, decodes: bool = True) -> None:
        self._redis = redis
        self._script = script
        self._options: dict[str, Any] = {} if decodes else {NEVER_DECODE: True}

    async def __call__(self, keys: Sequence[str], args: Sequence[str | bytes | int], *, wait_ms: int = 0) -> Any:
        """Run it. With `wait_ms`, raises Unreplicated unless a replica has by then what it wrote."""
        run = partial(self._run_replicated, wait_ms=wait_ms) if wait_ms else self._run
        command = ("EVALSHA", self._script.sha, len(keys), *keys, *args)
        try:
            return await run(command)
        except redis_errors.NoScriptError:
            await self._redis.script_load(self._script.text)
            return await run(command)

    async def _run(self, command: Sequence[Any]) -> Any:
        return await self._redis.execute_command(*command, **self._options)  # type: ignore[no-untyped-call] # as redis-py

    async def _run_replicated(self, command: Sequence[Any], *, wait_ms: int) -> Any:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command, **self._options)
            pipe.wait(1, wait_ms)
            # Not raised by the pipeline, which would write the command into the error's text, and so the prompt.
            replies = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        reply, replicas = replies
        if not replicas:
            raise Unreplicated
        return reply


# Each row: classes of redis-py, a word of Redis's own, what to say. The first row that fits counts: a later class may
# be the base of an earlier one. A script reports what it met as text, and then only the word tells.
_REASONS: Final[tuple[tuple[tuple[type[Exception], ...], str, str], ...]] = (
    (
        (redis_errors.OutOfMemoryError,),
        "OOM command not allowed",
        "is full (maxmemory) and takes no more jobs. Let the workers drain the queue, or raise maxmemory.",
    ),
    (
        (),
        "max number of clients",
        "has no connection left (maxclients). Raise it, or close unused clients.",
    ),
    (
        (redis_errors.TimeoutError, TimeoutError),
        "",
        "did not answer within {timeout_s:g} s. Check that it runs, that the network lets you through, and that it "
        "is not stalled.",
    ),
    (
        (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.NoPermissionError),
        "NOAUTH",
        "refused the user or password. Check the credentials in the Redis URL.",
    ),
    ((redis_errors.BusyLoadingError,), "LOADING", "is loading its data after a start. Try again in a moment."),
    ((redis_errors.ReadOnlyError,), "READONLY", "is a read-only replica. Point the Redis URL at the primary."),
    (
        (),
        "NOREPLICAS",
        "takes no writes, because too few replicas are in step with it (min-replicas-to-write). Check the replicas, or "
        "wait for them after a failover.",
    ),
    (
        (Unreplicated,),
        "",
        "has it, but no replica said so in time, and min-replicas-to-write asks for one. Check the replicas (INFO "
        "replication).",
    ),
    ((redis_errors.MaxConnectionsError,), "", "has more calls under way than connections. Call it less in parallel."),
    (
        (redis_errors.ConnectionError, OSError),
        "",
        "can't be reached. Check that it runs, and the host and port of the Redis URL.",
    ),
)


def _reason(error: Exception, timeout_s: float) -> tuple[type[QueueUnavailable], str]:
    if isinstance(error, MasterNotFound):
        return QueueUnavailable, f"can't be found: {error}."
    said = str(error)
    for classes, word, text in _REASONS:
        if isinstance(error, classes) or (word and word in said):
            kind = QueueFull if redis_errors.OutOfMemoryError in classes else QueueUnavailable
            return kind, text.format(timeout_s=timeout_s)
    return QueueUnavailable, f"refused the command: {said}"
