"""Where a store keeps its jobs: two Redis, or one, and the names of the keys in them."""

from __future__ import annotations

from dataclasses import dataclass

from ..redis.address import Address
from ..wire import redis_keys

__all__ = ["Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where, and how patiently. `outage_s` is how long those who wait for results ride out an outage."""

    broker: Address
    results: Address
    timeout_s: float
    outage_s: float
    key_prefix: str
    result_key_prefix: str

    @property
    def is_apart(self) -> bool:
        """Whether results are kept in another Redis than the queue."""
        return self.results != self.broker

    def key(self, name: str) -> str:
        """A key of the queue's."""
        return self.key_prefix + name

    def result_side(self, name: str) -> str:
        """A key that the result backend writes."""
        return self.result_key_prefix + name

    def record(self, job_id: str) -> str:
        """The key of a job's record."""
        return self.key_prefix + redis_keys.job(job_id)

    def result(self, job_id: str) -> str:
        """The key of a job's result."""
        return self.result_key_prefix + redis_keys.result(job_id)

    def group(self, group_id: str | None) -> list[str]:
        """The group's hash and its list of jobs, as scripts take them."""
        if group_id is None:
            return ["", ""]
        return [self.key(redis_keys.group(group_id)), self.key(redis_keys.group_jobs(group_id))]
