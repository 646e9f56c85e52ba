"""What a scenario has shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from .measurement import Record
from .provider import Call
from .scenarios import Scenario
from .windows import jain, most_in_a_minute

__all__ = ["AfterKill", "AfterRefusal", "Outcome", "judge"]

WARM_UP_S = 5.0
"""A limiter that nobody has used begins empty."""

FULL = 0.975
"""Of the permitted rate, over a second."""

HEARD_S = 0.1
"""From the first 429 to the last request that any process may still send."""


@dataclass(frozen=True, slots=True)
class AfterKill:
    """`lost_s`: capacity that was not used in the three seconds after it. `full_after_s`: until the rate was full."""

    lost_s: float
    full_after_s: float


@dataclass(frozen=True, slots=True)
class AfterRefusal:
    """`leaked`: calls from 0.1 s after the 429 until the pause was over. The others: calls after the pause."""

    leaked: int
    in_first_tenth: int
    in_first_second: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`used` is a share of what is permitted after the warm-up, `most` of the limit, in any window of a minute."""

    scenario: Scenario
    used: float
    refused: int
    """429s that the provider's counting brought, not the one that a scenario asks for."""
    trips: float
    """Redis round trips per call."""
    jain_processes: float
    jain_waiters: float
    most: float
    stale: int
    cpu_us: float
    """For each call, of all processes."""
    late_ms: float
    """The longest that the provider itself stood still."""
    after: AfterKill | AfterRefusal | None

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        names = ("used", "refused", "trips", "jain_processes", "jain_waiters", "most", "stale", "cpu_us", "late_ms")
        after = {name: getattr(self.after, name) for name in self.after.__slots__} if self.after else {}
        scenario = {
            name: getattr(self.scenario, name) for name in ("contestant", "limit", "algorithm", "seed", "strike")
        }
        return scenario | {name: getattr(self, name) for name in names} | after


def judge(record: Record) -> Outcome:
    scenario = record.scenario
    admitted = [call for call in record.calls if call.admitted]
    begins_at = record.started_at + WARM_UP_S
    counted = [call for call in admitted if begins_at <= call.at < record.ended_at]
    by_process = Counter(call.process for call in counted)
    by_waiter = Counter((call.process, call.waiter) for call in counted)
    busy = range(scenario.idle_processes, scenario.processes)
    waiters = [(process, waiter) for process in busy for waiter in range(scenario.waiters)]
    used = sum(_amount(scenario, call) for call in counted)
    most = most_in_a_minute((call.at, _amount(scenario, call)) for call in admitted)
    return Outcome(
        scenario=scenario,
        used=used / (scenario.permitted_per_s * (record.ended_at - begins_at)),
        refused=len(record.calls) - len(admitted),
        trips=record.round_trips / max(1, record.grants),
        jain_processes=jain(by_process[process] for process in busy),
        jain_waiters=jain(by_waiter[waiter] for waiter in waiters),
        most=most / (60 * scenario.permitted_per_s),
        stale=record.stale,
        cpu_us=record.cpu_s / max(1, record.grants) * 1e6,
        late_ms=record.provider_latest_s * 1e3,
        after=_after(record, admitted),
    )


def _amount(scenario: Scenario, call: Call) -> int:
    return 1 if scenario.tpm is None else call.tokens


def _after(record: Record, admitted: list[Call]) -> AfterKill | AfterRefusal | None:
    struck_at, scenario = record.struck_at, record.scenario
    instants = [call.at for call in admitted]
    if struck_at is None:
        return None
    if scenario.strike == "kill":
        lost_s = 3.0 - _between(instants, struck_at, struck_at + 3.0) / scenario.permitted_per_s
        return AfterKill(lost_s, _full_after_s(instants, struck_at, per_s=scenario.permitted_per_s))
    over_at = struck_at + scenario.retry_after_s
    return AfterRefusal(
        leaked=_between(instants, struck_at + HEARD_S, over_at),
        in_first_tenth=_between(instants, over_at, over_at + 0.1),
        in_first_second=_between(instants, over_at, over_at + 1.0),
    )


def _full_after_s(instants: list[float], struck_at: float, *, per_s: float) -> float:
    """Until the first second in which all was used again; a call ends the search."""
    starts = (at for at in instants if at >= struck_at)
    found = (at for at in starts if _between(instants, at, at + 1.0) >= FULL * per_s)
    return next(found, float("inf")) - struck_at


def _between(instants: list[float], begins_at: float, ends_at: float) -> int:
    return sum(begins_at <= at < ends_at for at in instants)
