"""What the exporter shows: each metric's name, its labels, its help, and where its value comes from. No I/O.

Names follow Prometheus's practices: a prefix, the thing, its base unit, `_total` for what only grows. A key is its
fingerprint; no label is a prompt, a key or a job's id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from workers.breaker import BreakerView
from workers.broker.leases import DeadLetterKind
from workers.limiter import LimiterView
from workers.telemetry.counts import COUNTERS, Event

from .reading import QueueView

__all__ = ["BREAKER", "DEAD_LETTER_REASONS", "DURATION", "LIMITER", "QUEUE", "UP", "Family", "Metric"]

Subject = TypeVar("Subject")
Family = GaugeMetricFamily | CounterMetricFamily
Samples = Iterable[tuple[tuple[str, ...], float]]

DEAD_LETTER_REASONS: Final[tuple[str, ...]] = get_args(DeadLetterKind)
"""Shown from 0 on: a counter that appears with its first event has not increased, for Prometheus."""


@dataclass(frozen=True, slots=True)
class Metric(Generic[Subject]):
    """One metric; `samples` are the labels' values and the figure, of one subject."""

    name: str
    text: str
    labels: tuple[str, ...]
    samples: Callable[[Subject], Samples]
    kind: type[Family] = GaugeMetricFamily

    def family(self, subjects: Iterable[Subject] = ()) -> Family:
        """The metric of all these subjects."""
        family = self.kind(f"promptmill_{self.name}", self.text, labels=self.labels)
        for subject in subjects:
            for values, figure in self.samples(subject):
                family.add_metric(values, figure)
        return family


def _plain(name: str, text: str) -> Metric[float]:
    return Metric(name, text, (), lambda figure: [((), figure)])


UP: Final = _plain("up", "1 if Redis answered this scrape; if not, everything but the scrape's duration is missing.")
DURATION: Final = _plain("scrape_duration_seconds", "How long reading Redis took for this scrape.")


# ---- the queue


def _queue_figure(name: str, text: str, value: Callable[[QueueView], float]) -> Metric[QueueView]:
    return Metric(name, text, (), lambda queue: [((), value(queue))])


def _buried(queue: QueueView) -> Samples:
    counts = dict.fromkeys(DEAD_LETTER_REASONS, 0) | dict(queue.buried)
    return [((reason,), count) for reason, count in counts.items()]


def _printable(name: str) -> str:
    return name.encode("unicode_escape").decode()


def _counted(event: Event) -> Metric[QueueView]:
    def samples(queue: QueueView) -> Samples:
        return [((value,), queue.counts.get(event.field(value), 0) * event.unit) for value in event.values]

    return Metric(event.name, event.text, (event.label,), samples, CounterMetricFamily)


QUEUE: Final[tuple[Metric[QueueView], ...]] = (
    Metric(
        "jobs_waiting",
        "Jobs that wait for a worker.",
        ("queue", "priority"),
        lambda queue: queue.waiting.items(),
    ),
    Metric(
        "jobs_delayed",
        "Jobs that are not due yet: with a delay of their own, or parked because their limiter's turn is far away.",
        ("queue",),
        lambda queue: [((name,), count) for name, count in queue.delayed.items()],
    ),
    Metric(
        "jobs_unread",
        "Jobs in lists that no worker reads, of producers with priority settings of their own.",
        ("list",),
        lambda queue: [((_printable(name),), count) for name, count in queue.unread.items()],
    ),
    _queue_figure("jobs_leased", "Jobs that workers hold under a lease: those that run.", lambda queue: queue.leased),
    _queue_figure(
        "leases_expired",
        "Jobs whose worker has fallen silent, and that no other has given back to the queue yet.",
        lambda queue: queue.leases_expired,
    ),
    _queue_figure("dead_letters", "Messages in the dead letters now.", lambda queue: queue.dead),
    Metric(
        "dead_letters_buried_total",
        "Messages that were ever moved to the dead letters, by reason.",
        ("reason",),
        _buried,
        CounterMetricFamily,
    ),
    _queue_figure(
        "cancelled_marks",
        "Cancellations that workers still look out for; one is kept for two weeks.",
        lambda queue: queue.cancelled,
    ),
    *map(_counted, COUNTERS),
)


# ---- the limiters

_LIMITER_LABELS: Final = ("provider", "model", "key_fingerprint")


def _names(view: LimiterView) -> tuple[str, ...]:
    return view.provider, view.model, view.fingerprint


def _limiter_figure(
    name: str, text: str, value: Callable[[LimiterView], float | None], kind: type[Family] = GaugeMetricFamily
) -> Metric[LimiterView]:
    """A `value` of None is left out."""

    def samples(view: LimiterView) -> Samples:
        figure = value(view)
        return [] if figure is None else [(_names(view), figure)]

    return Metric(f"limiter_{name}", text, _LIMITER_LABELS, samples, kind)


def _by_dimension(name: str, text: str, values: Callable[[LimiterView], Mapping[str, float]]) -> Metric[LimiterView]:
    def samples(view: LimiterView) -> Samples:
        return [((*_names(view), dimension), figure) for dimension, figure in values(view).items()]

    return Metric(f"limiter_{name}", text, (*_LIMITER_LABELS, "dimension"), samples)


LIMITER: Final[tuple[Metric[LimiterView], ...]] = (
    _by_dimension(
        "permitted_per_minute",
        "What the limiter lets through in a minute: requests, tokens, input, output. Missing: no limit is known.",
        lambda view: view.permitted_per_minute,
    ),
    _by_dimension(
        "used_last_minute", "What was sent in the last minute: requests, tokens.", lambda view: view.used_last_minute
    ),
    _limiter_figure("pace_ratio", "What 429s have left of the stated pace, from 0 to 1.", lambda view: view.pace_share),
    _limiter_figure(
        "requests_waiting", "Requests that wait for their turn, in all workers.", lambda view: view.waiting
    ),
    _limiter_figure(
        "expected_wait_seconds",
        "About how long a request of the usual size that came now would wait. Missing: nobody can tell.",
        lambda view: view.wait_s,
    ),
    _limiter_figure(
        "requests_in_flight", "Calls under way, and slots that are leased for the next.", lambda view: view.in_flight
    ),
    _limiter_figure(
        "requests_in_flight_limit", "Calls permitted at the same time. Missing: any.", lambda view: view.max_in_flight
    ),
    _limiter_figure(
        "requests_today",
        "Requests of this UTC day. Counted only where a day is limited.",
        lambda view: None if view.requests_per_day is None else view.used_today,
    ),
    _limiter_figure(
        "requests_per_day_limit", "Requests permitted on one UTC day. Missing: any.", lambda view: view.requests_per_day
    ),
    _limiter_figure(
        "pause_remaining_seconds",
        "How long nobody sends because the provider answered 429; 0 while there is no pause.",
        lambda view: view.paused_for_s,
    ),
    _limiter_figure(
        "asked_wait_seconds",
        "How long a provider that asks for more than a pause wants us to wait; 0: it asks for no such wait.",
        lambda view: view.asked_wait_s,
    ),
    _limiter_figure(
        "rate_limited_total",
        "429s that began a pause. Those of calls already under way then are not counted.",
        lambda view: view.refused,
        CounterMetricFamily,
    ),
    _limiter_figure(
        "requests_settled_total",
        "Calls that have ended and been settled with the limiter.",
        lambda view: view.settled,
        CounterMetricFamily,
    ),
    _limiter_figure(
        "tokens_estimated_total",
        "Tokens that were reserved for the settled calls.",
        lambda view: view.estimated_tokens,
        CounterMetricFamily,
    ),
    _limiter_figure(
        "tokens_actual_total",
        "Tokens that the settled calls took, as the provider counts them.",
        lambda view: view.actual_tokens,
        CounterMetricFamily,
    ),
    _limiter_figure("processes", "Worker processes that use the limiter.", lambda view: view.processes),
)


# ---- the breakers


def _breaker_figure(
    name: str, text: str, value: Callable[[BreakerView], float], kind: type[Family] = GaugeMetricFamily
) -> Metric[BreakerView]:
    def samples(view: BreakerView) -> Samples:
        return [((view.provider, view.model), value(view))]

    return Metric(f"breaker_{name}", text, ("provider", "model"), samples, kind)


BREAKER: Final[tuple[Metric[BreakerView], ...]] = (
    _breaker_figure(
        "open",
        "1 while calls of the model fail at its provider and its jobs wait; missing: it has not failed of late.",
        lambda view: view.is_open,
    ),
    _breaker_figure("open_seconds", "For how long that has lasted; 0: it works.", lambda view: view.open_for_s),
    _breaker_figure("opened_total", "How often that has begun.", lambda view: view.opened, CounterMetricFamily),
)
