"""What a worker process counts for `promptmill metrics`: rare events that no record in Redis shows.

Any thread counts; the broker sends the counts to Redis with what it says anyway (workers/broker/commands.py), and
Redis adds up those of all workers. A reply that is lost makes the same counts travel twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tasks.errors import ERROR_CODES

__all__ = ["COUNTERS", "Counts", "Event", "counts"]


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of event. `name` and `text` are its metric's; `values` those of its one label."""

    name: str
    text: str
    label: str
    values: tuple[str, ...]
    unit: float = 1.0
    """What one counted stands for in the metric: Redis adds up whole numbers."""

    def field(self, value: str) -> str:
        """The field of the hash `keys.COUNTS` that counts it."""
        return f"{self.name}:{value}"


COUNTERS: Final[tuple[Event, ...]] = (
    Event(
        "suspected_payments_total",
        "Calls that may have been paid for without an answer, by what ended them.",
        "cause",
        ("timeout", "connection", "bad_response", "worker_lost", "redis_lost"),
    ),
    Event(
        "stray_leases_total",
        "Jobs that a worker held without running them and handed back, by whether they had been started.",
        "job",
        ("unstarted", "started"),
    ),
    Event("fallbacks_total", "Jobs that went on to another model, by the code of what led there.", "code", ERROR_CODES),
    Event(
        "cache_lookups_total",
        "Jobs with a cache time, each time they looked for an answer, by where it was.",
        "found",
        ("memory", "redis", "shared", "followed", "missed", "skipped"),
    ),
    Event(
        "cache_saved_usd_total",
        "What the calls had cost whose answers served again, in US dollars, as far as it is known.",
        "by",
        ("answers",),
        unit=1e-6,
    ),
    Event(
        "schema_misfits_total",
        "Answers that did not fit their job's JSON Schema as they came, by what followed.",
        "next",
        ("syntax", "longer", "asked_again", "failed"),
    ),
    Event(
        "flex_calls_total",
        "Calls to a flex tier, and jobs that changed from it to the standard tier for want of time.",
        "end",
        ("answered", "no_room", "changed"),
    ),
    Event("jobs_failed_total", "Prompt jobs that ended without an answer, by their error's code.", "code", ERROR_CODES),
)
"""All that are counted. Each is shown from 0 on: a counter that appears with its first event has not increased, for
Prometheus."""


class Counts:
    """Events since they were last taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, name: str, value: str, n: int = 1) -> None:
        """Count `n` events of `COUNTERS`. Raises KeyError for one that is not listed there."""
        field = _FIELDS[name, value]
        with self._lock:
            self._counts[field] += n

    def take(self) -> Mapping[str, int]:
        """All, by field of the hash; from now on they count as sent."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken

    def put_back(self, taken: Mapping[str, int]) -> None:
        """Add what was taken and not sent."""
        with self._lock:
            self._counts.update(taken)


_FIELDS: Final = {(event.name, value): event.field(value) for event in COUNTERS for value in event.values}

counts = Counts()
"""This process's."""
