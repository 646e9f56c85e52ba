"""The names of the keys that store.lua writes and reads, and how long they live."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.wire import redis_keys

__all__ = ["Names"]


@dataclass(frozen=True, slots=True)
class Names:
    """Of one backend. `prefix` stands before results, and so before the groups' keys, which move with them;
    `broker_prefix` before the broker's keys. `is_brokers`: results are in the broker's own Redis.
    """

    prefix: str
    broker_prefix: str
    expires_s: int
    is_brokers: bool

    @property
    def leases(self) -> str:
        """Where the broker keeps its leases, if that is the same Redis: only then one script can see both."""
        return self.broker_prefix + redis_keys.LEASES if self.is_brokers else ""

    @property
    def for_broker(self) -> str | None:
        """What stands before a job's id in its result's key; None where the broker's scripts can't see results."""
        return self.prefix + redis_keys.RESULT_PREFIX if self.is_brokers else None

    def result(self, job_id: str) -> str:
        """The key of a job's result."""
        return self.prefix + redis_keys.result(job_id)

    def record(self, job_id: str) -> str:
        """The key of a job's record, in the broker's Redis."""
        return self.broker_prefix + redis_keys.job(job_id)

    def script_args(self) -> tuple[int | str, ...]:
        """As store.lua takes them: lifetimes (s) of results, ended groups and jobs' records, and other groups; the
        prefix of the records."""
        kept_s = max(self.expires_s, redis_keys.RECORD_TTL_S)
        return self.expires_s, kept_s, max(kept_s, redis_keys.WAITING_TTL_S), self.record("")
