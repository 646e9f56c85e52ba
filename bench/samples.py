"""What one measured run gives, and medians of several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .processes import BenchError
from .provider import Served

__all__ = ["Sample", "check_served", "median", "spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run: so many jobs, from the moment when all were in the queue to the moment when all results were read.

    The Redis figures are None where there is none. `redis_cpu_s` includes the reading of the results.
    """

    jobs: int
    places: int
    latency_s: float
    wall_s: float
    cpu_s: float
    rss_bytes: int
    peak_in_flight: int
    round_trips: int | None = None
    redis_cpu_s: float | None = None
    calls: int | None = None
    """That the provider served, where they are counted."""

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / self.wall_s

    @property
    def ideal_per_s(self) -> float:
        return self.places / self.latency_s

    @property
    def cpu_us(self) -> float:
        """Of the workers, for each job."""
        return self.cpu_s / self.jobs * 1e6

    @property
    def trips(self) -> float:
        """Redis round trips for each job."""
        return (self.round_trips or 0) / self.jobs

    @property
    def redis_cpu_us(self) -> float:
        return (self.redis_cpu_s or 0.0) / self.jobs * 1e6

    @property
    def rss_mb(self) -> float:
        return self.rss_bytes / 1e6


def check_served(served: Served, jobs: int) -> Served:
    """Every job is one call, or every prompt that differs: more would be paid twice, fewer would be made up."""
    if served.calls != jobs:
        raise BenchError(f"The provider served {served.calls} calls for {jobs} jobs or prompts.")
    return served


def median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return statistics.median(map(value, samples))


def spread(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """The difference of the extremes as a share of the median: how noisy the machine was."""
    values = [value(sample) for sample in samples]
    return (max(values) - min(values)) / statistics.median(values)
