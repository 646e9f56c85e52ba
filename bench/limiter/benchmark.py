"""The scenarios in turn, their table and their verdicts."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.table import Table

from ..plan import Plan
from ..report import Report, Verdict
from .measurement import measure
from .outcome import AfterKill, AfterRefusal, Outcome, judge
from .scenarios import FAST, OTHERS, OURS, SLOW, TOKENS, WINDOWS_S, Scenario

__all__ = ["run"]

SIDE_BY_SIDE = 6
"""Light scenarios at once: forty calls a second, all together."""


async def run(report: Report) -> None:
    """One scenario after the other; only the light ones side by side."""
    outcomes = []
    for batch in _batches(_chosen(report.plan)):
        longest_s = max(scenario.time_s for scenario in batch)
        names = dict.fromkeys(f"{_title(scenario)}: {scenario.contestant}" for scenario in batch)
        report.say(f"limiter, {longest_s:g} s: {'; '.join(names)}")
        found = [judge(record) for record in await asyncio.gather(*map(measure, batch))]
        for outcome in found:
            report.say(f"    {_summary(outcome)}")
        outcomes += found
    report.show(_table(outcomes))
    report.verdicts += _verdicts(outcomes)
    report.figures["limiter"] = [outcome.figures() for outcome in outcomes]


def _chosen(plan: Plan) -> Iterator[Scenario]:
    for scenario in (*OURS, *OTHERS):
        if scenario.tpm is not None:
            # Which answers are long is chance, so one run of these shows little.
            yield from (replace(scenario, seed=seed) for seed in range(plan.token_runs))
        elif plan.windows:
            yield scenario
        elif scenario.time_s < WINDOWS_S:
            yield replace(scenario, time_s=plan.limiter_s)


def _batches(scenarios: Iterator[Scenario]) -> Iterator[Sequence[Scenario]]:
    light: list[Scenario] = []
    for scenario in scenarios:
        if scenario.is_light:
            light.append(scenario)
        else:
            yield [scenario]
    for first in range(0, len(light), SIDE_BY_SIDE):
        yield light[first : first + SIDE_BY_SIDE]


def _title(scenario: Scenario) -> str:
    counted = {"bucket": "bucket", "fine": "bucket of 0.1 s", "sliding": "sliding", "fixed": "fixed windows"}
    strikes = {"kill": ", kill -9", "refuse": ", a 429", None: ""}
    idle = f", {scenario.idle_processes} idle" if scenario.idle_processes else ""
    return f"{scenario.limit}, {counted[scenario.algorithm]}{strikes[scenario.strike]}{idle}"


class _Column(NamedTuple):
    name: str
    of: Callable[[Outcome], float]
    shown: str
    of_several: Callable[[Sequence[float]], float] = statistics.median

    def cell(self, outcomes: Sequence[Outcome]) -> str:
        return f"{self.of_several([self.of(outcome) for outcome in outcomes]):{self.shown}}"


_COLUMNS = (
    _Column("used", lambda outcome: outcome.used, ".1%"),
    _Column("least", lambda outcome: outcome.used, ".1%", min),
    _Column("most/60 s", lambda outcome: outcome.most, ".1%"),
    _Column("429s", lambda outcome: outcome.refused, ",.0f", sum),
    _Column("trips/call", lambda outcome: outcome.trips, ".3f"),
    _Column("Jain K", lambda outcome: outcome.jain_processes, ".3f"),
    _Column("Jain W", lambda outcome: outcome.jain_waiters, ".3f"),
    _Column("stale", lambda outcome: outcome.stale, ",.0f"),
    _Column("us/call", lambda outcome: outcome.cpu_us, ",.0f"),
    _Column("late ms", lambda outcome: outcome.late_ms, ",.0f"),
)


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        title="4 processes at one strict provider; of several runs the medians, and all 429s", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column.name, justify="right")
    rows: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault((_title(outcome.scenario), outcome.scenario.contestant), []).append(outcome)
    for names, of_it in rows.items():
        table.add_row(*names, *(column.cell(of_it) for column in _COLUMNS))
    return table


def _summary(outcome: Outcome) -> str:
    text = f"{outcome.used:.1%} used, {outcome.refused:,} 429s, {outcome.trips:.3f} trips a call"
    match outcome.after:
        case AfterKill(lost_s, full_after_s):
            text += f"; {lost_s:.2f} s of capacity lost, full rate after {full_after_s:.2f} s"
        case AfterRefusal(leaked, in_first_tenth, in_first_second):
            text += f"; {leaked} leaked, after the pause {in_first_tenth} in 0.1 s, {in_first_second} in 1 s"
    return text


def _verdicts(outcomes: Sequence[Outcome]) -> Iterator[Verdict]:
    """The limits of the project, each for the worst of its rows."""
    ours = [outcome for outcome in outcomes if outcome.scenario.contestant == "Promptmill"]
    for usual, trips in ((FAST, 0.05), (SLOW, 0.12)):
        of_it = [each for each in ours if each.scenario.limit == usual.limit and each.after is None]
        yield from _of_requests(usual.limit, of_it, trips=trips)
    tokens = [each for each in ours if each.scenario.limit == TOKENS.limit]
    for algorithm in dict.fromkeys(each.scenario.algorithm for each in tokens):
        yield from _of_tokens([each for each in tokens if each.scenario.algorithm == algorithm])
    for outcome in ours:
        yield from _of_strike(outcome)


def _of_requests(limit: str, outcomes: Sequence[Outcome], *, trips: float) -> Iterator[Verdict]:
    yield Verdict(f"{limit}: used after 5 s, %", min(each.used for each in outcomes) * 100, at_least=97.5)
    yield Verdict(f"{limit}: 429s", sum(each.refused for each in outcomes), at_most=0)
    yield Verdict(f"{limit}: Redis round trips per call", max(each.trips for each in outcomes), at_most=trips)
    yield Verdict(f"{limit}: Jain index, processes", min(each.jain_processes for each in outcomes), at_least=0.95)
    yield Verdict(f"{limit}: Jain index, waiters", min(each.jain_waiters for each in outcomes), at_least=0.95)


def _of_tokens(outcomes: Sequence[Outcome]) -> Iterator[Verdict]:
    title = _title(outcomes[0].scenario)
    used = statistics.median(each.used for each in outcomes)
    yield Verdict(f"{title}: used, %, median of {len(outcomes)} runs", used * 100, at_least=95)
    yield Verdict(f"{title}: 429s in {len(outcomes)} runs", sum(each.refused for each in outcomes), at_most=0)


def _of_strike(outcome: Outcome) -> Iterator[Verdict]:
    match outcome.after:
        case AfterKill(_, full_after_s):
            yield Verdict("kill -9 of one of four: 429s", outcome.refused, at_most=0)
            yield Verdict("kill -9: most in any 60 s, % of the limit", outcome.most * 100, at_most=100)
            yield Verdict("kill -9: full rate again after, s", full_after_s, at_most=3)
        case AfterRefusal(leaked, in_first_tenth, in_first_second):
            per_s = outcome.scenario.permitted_per_s
            yield Verdict("429: calls from 0.1 s on until the pause ends", leaked, at_most=0)
            yield Verdict("429: calls in the first 0.1 s after it", in_first_tenth, at_most=per_s / 10 + 5)
            yield Verdict("429: calls in the first second after it", in_first_second, at_least=0.95 * per_s)
