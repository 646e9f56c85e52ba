"""Which jobs Redis knows already, many at a time."""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tasks import keys

from .errors import RunError

__all__ = ["Shelf"]


class Shelf:
    """What an interrupted run has left in Redis: submitted jobs, and answers that nobody has written down."""

    def __init__(self, redis: Redis, *, key_prefix: str) -> None:
        self._redis = redis
        self._key_prefix = key_prefix

    async def known(self, job_ids: Iterable[str]) -> set[str]:
        """Those that were submitted before, ended or not."""
        return await self._existing({job_id: self._key_prefix + keys.job(job_id) for job_id in job_ids})

    async def ended(self, job_ids: Iterable[str]) -> set[str]:
        """Those that have a result."""
        return await self._existing({job_id: keys.result(job_id) for job_id in job_ids})

    async def _existing(self, names: dict[str, str]) -> set[str]:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names.values():
                    pipe.exists(name)
                found = await pipe.execute()
        except RedisError as error:
            raise RunError(f"Redis does not answer: {error}.") from None
        return {job_id for job_id, exists in zip(names, found, strict=True) if exists}
