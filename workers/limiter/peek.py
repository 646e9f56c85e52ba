"""How long a request that came now would wait: acquire.lua's reckoning on what it has written down. Takes nothing.

Pure arithmetic on the hashes in Redis, so that looking costs no script and changes no key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from .cost import Cost
from .rate import WINDOW_S

if TYPE_CHECKING:
    from .cost import DimensionName

__all__ = ["Ahead", "Hash", "Sold", "expected_wait_s", "flow_per_s", "pace_share", "sold", "split_tokens"]

Hash = Mapping[bytes, bytes]

_DOUBLES_S = 10.0
_RECENT_BIN_S = 2.0
"""As in recent.lua."""

_FLOW_MEMORY_S = 10.0
"""As in clock.lua, `flow_with`."""


@dataclass(frozen=True, slots=True)
class Sold:
    """One dimension of a schedule: its pace as it is now, and the instant (s) up to which its capacity is sold.

    `is_shared`: it is the organisation's, above all keys of the model.
    """

    name: DimensionName
    rate_per_s: float
    burst: float
    until: float
    is_shared: bool = False

    def instant(self, cost: Cost) -> float:
        """When a request of this cost may go, as far as this dimension is concerned."""
        return self.until + self._ahead_s(cost)

    def after(self, count: int, cost: Cost, *, first_at: float) -> Sold:
        """When `count` requests of this cost have been sold too, the first of them for `first_at`."""
        begins = max(self.until, first_at - max(0.0, self._ahead_s(cost)))
        return replace(self, until=begins + count * cost.of(self.name) / self.rate_per_s)

    def _ahead_s(self, cost: Cost) -> float:
        """How much of its cost, in seconds of the pace, is sold before it goes; of a calendar's a burst at most."""
        amount: float = cost.of(self.name)
        if self.is_shared:
            amount = min(amount, 2 * self.burst)
        return (amount - self.burst) / self.rate_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """Who stands before the request: `waiting` others of a `typical` cost, and what keeps it from the schedule.

    `max_in_flight` and `requests_per_day` are None where nothing is limited; `flow_per_s` is the requests a second that
    were sent of late.
    """

    waiting: int
    typical: Cost
    in_flight: int
    max_in_flight: int | None
    used_today: int
    requests_per_day: int | None
    flow_per_s: float


def sold(state: Hash, organisation: Hash, *, now: float) -> list[Sold]:
    """The dimensions as acquire.lua would find them at the instant `now`."""
    share, cap = pace_share(state, now=now), _cap_per_s(state, now=now)
    found = []
    for part in state.get(b"dimensions", b"").decode().split():
        level, name, _, rate, burst, _ = part.split(":")
        if level == "o":
            found.append(_in_calendar(cast("DimensionName", name), float(rate), float(burst), organisation, now=now))
            continue
        rate_per_s = float(rate) * share
        found.append(_with_instant(Sold(cast("DimensionName", name), rate_per_s, float(burst), 0.0), state, now=now))
    if cap is not None and not any(each.name == "requests" and not each.is_shared for each in found):
        felt = _with_instant(Sold("requests", cap, 1.0, 0.0), state, now=now)
        found.append(replace(felt, until=max(felt.until, _room_at(state, cap, now=now))))
    return found


def _with_instant(dimension: Sold, state: Hash, *, now: float) -> Sold:
    until = state.get(f"tat:{dimension.name}".encode())
    if until is not None:
        return replace(dimension, until=_carried_over(dimension, float(until), state, now=now))
    # Nothing was ever sold: a limiter that nobody has used starts with one permit.
    unused = (dimension.burst - 1) / dimension.rate_per_s if dimension.name == "requests" else 0.0
    return replace(dimension, until=now + unused)


def _carried_over(dimension: Sold, until: float, state: Hash, *, now: float) -> float:
    """As clock.lua's `carry_over`: what is sold ahead at one pace is more seconds of a lower one."""
    pace = state.get(f"pace:{dimension.name}".encode())
    if pace is None:
        return until
    density, burst = map(float, pace.split())
    begins = max(now, *(float(state.get(field, 0)) for field in (b"lost_until", b"pause")))
    owed = max(0.0, until - begins) * density + dimension.burst - burst
    return max(until, begins + min(owed / dimension.rate_per_s, WINDOW_S)) if owed > 0 else until


def _in_calendar(name: DimensionName, rate_per_s: float, burst: float, calendar: Hash, *, now: float) -> Sold:
    """The organisation's dimension, behind the last bin that anything is sold of; gaps before it are not looked for."""
    capacity = 1.0 if name == "requests" else burst / 2
    prefix = f"{name}:".encode()
    width_s = float(calendar.get(f"width:{name}".encode(), capacity / rate_per_s))
    bins = [int(field.removeprefix(prefix)) for field in calendar if field.startswith(prefix)]
    until = now
    if bins:
        last = max(bins)
        until = max(now, last * width_s + float(calendar[prefix + str(last).encode()]) / rate_per_s)
    return Sold(name, rate_per_s, capacity, until, is_shared=True)


def expected_wait_s(
    dimensions: Sequence[Sold], cost: Cost, *, ahead: Ahead, now: float, nothing_until: float = 0.0
) -> float | None:
    """About how long a request of this cost that came at `now` would wait (s); none goes before `nothing_until`.

    None: too many calls are in flight, and none has ended of late, so nobody can tell when one will.
    """
    calls_s = _until_a_call_ends_s(ahead)
    if calls_s is None:
        return None
    start = max(now, nothing_until)
    if ahead.waiting:
        first_at = _first_instant(dimensions, ahead.typical, start=start)
        dimensions = [each.after(ahead.waiting, ahead.typical, first_at=first_at) for each in dimensions]
        start = first_at
    return max(_first_instant(dimensions, cost, start=start) - now, calls_s, _until_tomorrow_s(ahead, now=now))


def _first_instant(dimensions: Iterable[Sold], cost: Cost, *, start: float) -> float:
    return max([start, *(each.instant(cost) for each in dimensions)])


def _until_a_call_ends_s(ahead: Ahead) -> float | None:
    if ahead.max_in_flight is None:
        return 0.0
    must_end = ahead.in_flight + ahead.waiting + 1 - ahead.max_in_flight
    if must_end <= 0:
        return 0.0
    # While the places are full, calls are sent as others end.
    return must_end / ahead.flow_per_s if ahead.flow_per_s > 0 else None


def _until_tomorrow_s(ahead: Ahead, *, now: float) -> float:
    if ahead.requests_per_day is None or ahead.used_today + ahead.waiting < ahead.requests_per_day:
        return 0.0
    return 86_400 - now % 86_400


def split_tokens(tokens: float, dimensions: Iterable[Sold]) -> Cost:
    """A cost of so many tokens. Redis holds their sum alone; where input and output are limited apart, they are taken
    to come in the proportion of their limits."""
    rates = {each.name: each.rate_per_s for each in dimensions if each.name in {"input", "output"}}
    share = rates.get("output", 0.0) / sum(rates.values()) if rates else 0.0
    output = round(tokens * share)
    return Cost(round(tokens) - output, output)


def pace_share(state: Hash, *, now: float) -> float:
    """What 429s have left of the stated pace."""
    if b"factor" not in state:
        return 1.0
    return min(1.0, float(state[b"factor"]) + 0.01 * max(0.0, now - float(state[b"factor_at"])))


def _cap_per_s(state: Hash, *, now: float) -> float | None:
    """The pace of a model whose limits nobody knows, after a 429, as clock.lua's `cap_at` has it."""
    if b"cap" not in state:
        return None
    cap, age_s = float(state[b"cap"]), max(0.0, now - float(state[b"cap_at"]))
    top, seconds_to = cap / 0.7, 60.0
    growth = state.get(b"cap_to", b"").split()
    if growth and growth[2] == state[b"cap_at"]:
        top, seconds_to = float(growth[0]), float(growth[1])
    if not seconds_to:
        return cap * 2**age_s if age_s <= _DOUBLES_S else None
    grown = top + (top - cap) * (age_s / seconds_to - 1) ** 3
    return grown if grown <= 10 * cap else None


def _room_at(state: Hash, cap: float, *, now: float) -> float:
    """When a window that 429s have shown has room again: unstated.lua's `most_a_minute`, recent.lua's `room_at`."""
    ceiling = state.get(b"ceiling", b"").split()
    if len(ceiling) < 3 or ceiling[1] != b"guessed" or ceiling[2] != state[b"cap_at"]:
        return now
    pairs = (each.split(b":") for each in state.get(b"recent", b"").split())
    bins = sorted((int(at), int(requests)) for at, requests in pairs)
    at, most = now, WINDOW_S * max(0.97 * float(ceiling[0]), 1.04 * cap)
    ends = [((number + 1) * _RECENT_BIN_S + WINDOW_S, requests) for number, requests in bins]
    sent = sum(requests for end, requests in ends if end > now)
    for end, requests in ends:
        if end > now and sent >= most:
            at, sent = end, sent - requests
    return at


def flow_per_s(state: Hash, *, now: float) -> float:
    """Requests a second over the last seconds."""
    if b"flow" not in state:
        return 0.0
    left = math.exp(-max(0.0, now - float(state[b"flow_at"])) / _FLOW_MEMORY_S)
    seen = 1 - math.exp(-max(1.0, now - float(state[b"flow_from"])) / _FLOW_MEMORY_S)
    return float(state[b"flow"]) * left / seen
