"""Which jobs Redis knows already, many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tasks.wire import redis_keys

from ..errors import RunError

__all__ = ["Shelf"]

AT_ONCE = 1_000
"""Keys of one round trip, for which the event loop stands still some 10 ms."""


class Shelf:
    """What an interrupted run has left in Redis: submitted jobs, and answers that nobody has written down."""

    def __init__(self, redis: Redis, *, key_prefix: str) -> None:
        self._redis = redis
        self._key_prefix = key_prefix

    async def known(self, job_ids: Iterable[str]) -> set[str]:
        """Those that were submitted before, ended or not. A result may outlive its job's record."""
        records = {job_id: self._key_prefix + redis_keys.job(job_id) for job_id in job_ids}
        found = await self._existing(records)
        return found | await self.ended(records.keys() - found)

    async def ended(self, job_ids: Iterable[str]) -> set[str]:
        """Those that have a result."""
        return await self._existing({job_id: redis_keys.result(job_id) for job_id in job_ids})

    async def _existing(self, names: dict[str, str]) -> set[str]:
        existing: set[str] = set()
        for part in _parts(names):
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for job_id in part:
                        pipe.exists(names[job_id])
                    found = await pipe.execute()
            except RedisError as error:
                raise RunError(f"Redis does not answer: {error}.") from None
            existing |= {job_id for job_id, exists in zip(part, found, strict=True) if exists}
        return existing


def _parts(job_ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(job_ids)
    while part := list(islice(rest, AT_ONCE)):
        yield part
