"""What Redis holds of the queue and the limiters, read for one scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from config.settings import Settings
from tasks.redis.address import Address
from tasks.wire import redis_keys
from tasks.wire.message import CELERY_PRIORITY
from workers.breaker import BreakerView, look
from workers.checks import lists_of, unread_lists
from workers.limiter import LimiterView, snapshot

__all__ = ["READ_TIMEOUT_S", "Deployment", "QueueView", "connect", "read"]

READ_TIMEOUT_S: Final = 3.0
"""For all of a scrape; Prometheus itself waits ten seconds unless it is told otherwise."""

CONNECTIONS: Final = 4
"""Kept open between scrapes. Each limiter is a round trip, and they share these."""

_PRIORITIES: Final = {step: name for name, step in CELERY_PRIORITY.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """The queue. `waiting` is by queue and priority, `delayed` by queue, `buried` by reason.

    `leased` are the messages that workers hold; `leases_expired` those whose worker has fallen silent and that no other
    has given back yet.
    """

    waiting: Mapping[tuple[str, str], int]
    delayed: Mapping[str, int]
    leased: int
    leases_expired: int
    unread: Mapping[str, int]
    """Messages in lists that no worker reads, by the list's name."""
    dead: int
    buried: Mapping[str, int]
    cancelled: int
    counts: Mapping[str, int]
    """Events that workers count, by field of the hash `redis_keys.COUNTS`."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """All that a scrape shows."""

    queue: QueueView
    limiters: Sequence[LimiterView]
    breakers: Sequence[BreakerView]


def connect(address: Address) -> Redis:
    """The exporter's client; asks nothing yet.

    A connection that Redis has closed meanwhile is opened anew, once; more patience would cost the scrape.
    """
    pool = address.blocking_pool(
        max_connections=CONNECTIONS,
        timeout_s=READ_TIMEOUT_S,
        socket_timeout=READ_TIMEOUT_S,
        socket_connect_timeout=READ_TIMEOUT_S,
        retry=Retry(NoBackoff(), retries=1),
    )
    return Redis.from_pool(pool)


async def read(redis: Redis, *, queues: Sequence[str], settings: Settings) -> Deployment:
    """Raises `redis.exceptions.RedisError` and OSError."""
    queue = await _read_queue(redis, queues=queues, settings=settings)
    limiters = await snapshot(redis, key_prefix=settings.key_prefix)
    return Deployment(queue, limiters, await look(redis, key_prefix=settings.key_prefix))


async def _read_queue(redis: Redis, *, queues: Sequence[str], settings: Settings) -> QueueView:
    key_prefix = settings.key_prefix
    lists = [
        (name, (queue, _PRIORITIES.get(step, str(step))))
        for queue in queues
        for name, step in lists_of(queue, settings).items()
    ]
    unread = [name for queue in queues for name in unread_lists(queue, settings)]
    async with redis.pipeline(transaction=False) as commands:
        commands.time()
        commands.zcard(key_prefix + redis_keys.LEASES)
        commands.llen(key_prefix + redis_keys.DEAD)
        commands.hgetall(key_prefix + redis_keys.DEAD_COUNTS)
        commands.zcard(key_prefix + redis_keys.CANCELLED)
        commands.hgetall(key_prefix + redis_keys.COUNTS)
        for name in (*(name for name, _ in lists), *unread):
            commands.llen(key_prefix + name)
        for queue in queues:
            commands.zcard(key_prefix + redis_keys.delayed(queue))
        (seconds, micros), leases, dead, buried, cancelled, counts, *lengths = await commands.execute()
    now_ms = seconds * 1000 + micros // 1000
    expired = await redis.zcount(key_prefix + redis_keys.LEASES, "-inf", f"({now_ms}")
    read_lengths, unread_lengths = lengths[: len(lists)], lengths[len(lists) : len(lists) + len(unread)]
    waiting: Counter[tuple[str, str]] = Counter()
    for (_, labels), length in zip(lists, read_lengths, strict=True):
        waiting[labels] += length
    return QueueView(
        waiting=waiting,
        delayed=dict(zip(queues, lengths[len(lists) + len(unread) :], strict=True)),
        unread={name: length for name, length in zip(unread, unread_lengths, strict=True) if length},
        leased=max(0, leases - expired),
        leases_expired=expired,
        dead=dead,
        buried=_decoded(buried),
        cancelled=cancelled,
        counts=_decoded(counts),
    )


def _decoded(counts: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in counts.items()}
