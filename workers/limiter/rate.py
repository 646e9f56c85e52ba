"""From a provider's limits to the pace that keeps them under every phase of its counting. Pure arithmetic.

A schedule of rate r and burst b lets at most `b + floor(r * T)` requests go in any time T. A request reaches the
provider up to J seconds after its instant (`use_by_s` for us, the rest for the network), so that:

- windows of N per W, fixed or sliding, hold if  r < (N - b + 1) / (W + J), at every phase;
- a bucket of capacity C that refills at R holds with r = R if  b + r * J <= C  and C >= 2. A bucket of one cannot
  forgive: the gap between two requests must be 1 / R + J.

Tokens come in lumps, and an answer's length is known only when it is over. So under windows the schedule also remembers
what the last minute and J have taken (window.lua), and their pace only spreads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from .cost import MOST_CALL_TOKENS, Cost
from .errors import TooLargeForLimit

if TYPE_CHECKING:
    from config.catalog import Limits

    from .cost import DimensionName, TokenUsage

__all__ = ["BIN_S", "WINDOW_S", "Dimension", "Plan", "plan"]

WINDOW_S = 60.0
BIN_S = 0.125
"""How finely the last minute's tokens are remembered; a bin counts until all of it is too old."""

MAX_USE_BY_S = 0.25
TOKENS_USE_BY_S = 0.05
"""Under windows of tokens, whose J costs its share of the limit; of so few slots, hardly one comes late."""

NETWORK_JITTER_S = 0.1
"""What the way to the provider may add under windows; under buckets, `_NETWORK_SHARE` of J is for it."""

_NETWORK_SHARE = 0.4
_MIN_JITTER_S = 0.03
_LONE_NETWORK_SHARE = 0.5
"""The same where a bucket holds less than two requests: nothing else forgives what the network adds."""

_MIN_JITTER_GAPS = 0.08
"""J is never less than this share of the gap between two requests: at 60 a minute a lost slot is a lost second, and
40 ms for the network are what a busy machine needs."""

_MAX_BURST = 4
_BUCKET_S = 1.0
_UNKNOWN_BUCKET_S = 0.1
"""Providers are known to enforce 60,000 a minute as 1,000 a second; some go finer."""

_TOKEN_BURST = 0.01
_WINDOW_TOKEN_BURST = 0.02
"""More, where the window's memory holds the limit: room that opens late is still used."""

_BUCKET_TOKEN_SHARE = 0.99
"""A bucket of tokens holds seconds of its rate, which is more than that difference."""

_BELOW = 1.0 - 1e-6


@dataclass(frozen=True, slots=True)
class Dimension:
    """One limited quantity: `limit` a minute as the provider states it, and the safe pace below it.

    `stated` is the catalogue's limit; None where it is learned from answers. `shared_by` says how many keys have it
    together, where it is an organisation's; 0 where it is the key's own.
    `span_s` is how far back what was taken counts against the limit, beside the pace; 0 where the pace says it all.
    """

    name: DimensionName
    limit: int
    rate_per_s: float
    burst: float
    shared_by: int = 0
    span_s: float = 0.0
    stated: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Plan:
    """Everything that governs one limiter. A slot is void `use_by_s` seconds after its instant.

    Without slots, so that what each grant asks for is worked out once.
    """

    dimensions: tuple[Dimension, ...] = ()
    use_by_s: float = MAX_USE_BY_S
    requests_per_day: int | None = None
    max_in_flight: int | None = None

    @cached_property
    def is_free(self) -> bool:
        """Whether nothing is limited, so that only pauses hold a request."""
        return not self.dimensions and self.requests_per_day is None and self.max_in_flight is None

    @cached_property
    def counts_tokens(self) -> bool:
        return any(dimension.name != "requests" for dimension in self.dimensions)

    @cached_property
    def remembers_tokens(self) -> bool:
        """Whether what was taken counts against a limit of tokens for as long as a provider's window lasts."""
        return any(dimension.span_s for dimension in self.dimensions)

    @property
    def limits_requests(self) -> bool:
        """Whether the key's own limit of requests is known."""
        return any(dimension.name == "requests" and not dimension.shared_by for dimension in self.dimensions)

    def unit_s(self, cost: Cost) -> float:
        """Seconds of the tightest dimension's capacity, or of the key's even share of it, that the request takes."""
        return max(
            (cost.of(each.name) / each.rate_per_s * (each.shared_by or 1) for each in self.dimensions), default=0.0
        )

    @cached_property
    def most_tokens(self) -> int:
        """What one call may take and be within every limit of tokens."""
        return min((each.limit for each in self.dimensions if each.name != "requests"), default=MOST_CALL_TOKENS)

    def within(self, cost: Cost) -> Cost:
        """The cost with no more than fits into one window of each limit.

        A guess must not make a request impossible, nor a limit that is learned: the request goes alone, as all
        that its window holds. Nor must what a provider counts for one call take more than that window.
        """
        input_tokens, output_tokens = cost.input_tokens, cost.output_tokens
        for each in self.dimensions:
            if each.name in {"input", "tokens"}:
                input_tokens = min(input_tokens, each.limit)
        for each in self.dimensions:
            if each.name == "output":
                output_tokens = min(output_tokens, each.limit)
            elif each.name == "tokens":
                output_tokens = min(output_tokens, each.limit - input_tokens)
        if (input_tokens, output_tokens) == (cost.input_tokens, cost.output_tokens):
            return cost
        return replace(cost, input_tokens=input_tokens, output_tokens=output_tokens)

    def taken(self, usage: TokenUsage) -> TokenUsage:
        """What counts of a call's `usage`: one odd number of a provider's stands for no more than a window."""
        if usage.input_tokens + usage.output_tokens <= self.most_tokens:
            return usage
        return self.within(Cost(min(usage.input_tokens, MOST_CALL_TOKENS), min(usage.output_tokens, MOST_CALL_TOKENS)))

    def check(self, cost: Cost) -> None:
        """Raises `TooLargeForLimit` for a request that no wait could let through, by the catalogue and for certain."""
        for each in self.dimensions:
            if each.name != "requests" and each.stated is not None and cost.least(each.name) > each.stated:
                raise TooLargeForLimit(each.name, cost=cost.least(each.name), limit=each.stated)


@lru_cache(maxsize=1_024)
def plan(limits: Limits, *, stated: Limits | None = None, organisation: Limits | None = None, keys: int = 1) -> Plan:
    """The safe pace for one key's limits, and for those that its organisation's `keys` have together.

    `stated` are the catalogue's, where others are learned. Of the organisation's, only what is counted by the
    minute: the others have no schedule above the keys.
    """
    own = _plan(limits, stated=limits if stated is None else stated)
    if organisation is None:
        return own
    above = _plan(organisation, stated=organisation)
    shared = tuple(replace(each, shared_by=keys) for each in above.dimensions)
    return replace(own, dimensions=own.dimensions + shared, use_by_s=min(own.use_by_s, above.use_by_s))


def _plan(limits: Limits, *, stated: Limits) -> Plan:
    dimensions: list[Dimension] = []
    use_by_s = MAX_USE_BY_S
    if limits.rpm is not None:
        requests, use_by_s = _requests(limits.rpm, limits.algorithm)
        dimensions.append(requests)
    fields: tuple[tuple[DimensionName, str], ...] = (
        ("tokens", "tpm"),
        ("input", "input_tpm"),
        ("output", "output_tpm"),
    )
    tokens = [
        replace(_tokens(name, limit, limits.algorithm), stated=getattr(stated, field_))
        for name, field_ in fields
        if (limit := getattr(limits, field_)) is not None
    ]
    if any(each.span_s for each in tokens):
        use_by_s = min(use_by_s, TOKENS_USE_BY_S)
    dimensions += tokens
    return Plan(tuple(dimensions), use_by_s, limits.rpd, limits.max_in_flight)


def _requests(rpm: int, algorithm: str) -> tuple[Dimension, float]:
    per_s = rpm / WINDOW_S
    match algorithm:
        case "bucket":
            rate, burst, use_by_s = _under_bucket(per_s, capacity=max(1.0, per_s * _BUCKET_S))
        case "sliding" | "fixed":
            burst, use_by_s = max(1, min(_MAX_BURST, rpm // 300)), MAX_USE_BY_S
            rate = _under_windows(rpm, burst=burst, use_by_s=use_by_s)
        case _:
            capacity = max(1.0, min(2.0, per_s * _BUCKET_S), per_s * _UNKNOWN_BUCKET_S)
            rate, burst, use_by_s = _under_bucket(per_s, capacity=capacity)
            rate = min(rate, _under_windows(rpm, burst=burst, use_by_s=use_by_s))
    return Dimension("requests", rpm, rate, burst), use_by_s


def _under_windows(limit: int, *, burst: int, use_by_s: float) -> float:
    return (limit - burst + 1) / (WINDOW_S + use_by_s + NETWORK_JITTER_S) * _BELOW


def _under_bucket(per_s: float, *, capacity: float) -> tuple[float, int, float]:
    """Rate, burst and use-by for a bucket that refills with `per_s`."""
    burst = int(max(1, min(_MAX_BURST, capacity / 8)))
    network_share = _LONE_NETWORK_SHARE if capacity < 2 else _NETWORK_SHARE
    jitter_s = max((capacity - burst) / per_s, _MIN_JITTER_S, _MIN_JITTER_GAPS / per_s)
    jitter_s = min(jitter_s, MAX_USE_BY_S / (1 - network_share))
    use_by_s = jitter_s * (1 - network_share)
    # A bucket of two or more forgives; below, each gap pays for the jitter of its two ends.
    rate = per_s / max(1.0, 2.0 - capacity + per_s * jitter_s) if capacity < 2 else per_s
    return rate * _BELOW, burst, use_by_s


def _tokens(name: DimensionName, limit: int, algorithm: str) -> Dimension:
    if algorithm == "bucket":
        burst = max(1.0, limit * _TOKEN_BURST)
        return Dimension(name, limit, limit / WINDOW_S * _BUCKET_TOKEN_SHARE, burst)
    span_s = WINDOW_S + TOKENS_USE_BY_S + NETWORK_JITTER_S
    return Dimension(name, limit, limit / span_s, max(1.0, limit * _WINDOW_TOKEN_BURST), span_s=span_s)
