"""What a run has done, at its end: as numbers for programs and as a table for people."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from workers.telemetry.terminal import printable

from .progress import duration
from .tally import Tally

__all__ = ["Outcome", "next_step", "summary_numbers", "summary_table"]

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `wall_s` runs from the first row to the last result, `startup_s` up to there."""

    tally: Tally
    wall_s: float
    startup_s: float
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """130 interrupted, 2 bad rows, 1 failed jobs, 0 each row has its answer."""
        if self.interrupted:
            return 130
        if self.tally.bad_rows:
            return 2
        return 0 if self.tally.statuses["succeeded"] == self.tally.ended else 1


def summary_numbers(outcome: Outcome) -> dict[str, Any]:
    """The summary of `--json`.

    It counts this run alone: rows that an earlier run finished are in `kept`. `latency_s` is from a job's first
    start to its answer, `errors` counts failed jobs and bad rows by code. `cost_usd` is None when no cost is known;
    `unpriced` answers are not in it.
    """
    tally = outcome.tally
    return {
        "submitted": tally.submitted,
        **{status: tally.statuses[status] for status in ("succeeded", "failed", "cancelled", "expired")},
        "wall_s": round(outcome.wall_s, 3),
        "throughput_per_s": round(tally.ended / outcome.wall_s, 2) if outcome.wall_s > 0 else 0.0,
        "latency_s": {name: _rounded(tally.latency.percentile_s(share)) for name, share in PERCENTILES.items()},
        "input_tokens": tally.input_tokens,
        "output_tokens": tally.output_tokens,
        "cost_usd": None if tally.cost_usd is None else float(tally.cost_usd),
        "attempts": tally.attempts,
        "rate_limited": tally.rate_limited,
        "cached": tally.cached,
        "saved_usd": float(tally.saved_usd),
        "provider_calls": tally.attempts,
        "errors": dict((tally.failures + tally.refusals).most_common()),
        "kept": tally.kept,
        "bad_rows": tally.bad_rows,
        "unfinished": tally.submitted - tally.ended,
        "unpriced": tally.unpriced,
        "suspected_double_payments": tally.suspected_double_payments,
        "prompt_fields": dict(tally.prompt_fields.most_common()),
        "startup_s": round(outcome.startup_s, 3),
        "interrupted": outcome.interrupted,
    }


def summary_table(outcome: Outcome) -> Table:
    """Only what there is something to say about."""
    tally = outcome.tally
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in _lines(outcome, tally):
        if text:
            table.add_row(f"[bold]{name}[/bold]", text)
    return table


def next_step(outcome: Outcome, *, output: Path, arguments: Sequence[str]) -> str:
    """What to do now, if anything is left to do. `arguments` are those of this run's command line."""
    command = shlex.join(["promptmill", *arguments])
    if outcome.interrupted:
        return f"Interrupted. What has ended is in {output}. To continue:\n  {command}"
    if outcome.exit_code == 1:
        first = outcome.tally.first_failure
        reason = f"The first row that failed: {printable(first)}\n" if first else ""
        return f"{reason}The rows that failed say why in {output}. To try them again:\n  {command}"
    if outcome.exit_code == 2:
        codes = " or ".join(sorted(outcome.tally.refusals))
        return f"The bad rows say why in {output}, with code {codes} and the input's line."
    return ""


def _lines(outcome: Outcome, tally: Tally) -> list[tuple[str, str]]:
    return [
        ("succeeded", f"{tally.statuses['succeeded']:,}"),
        ("failed", _with_codes(tally.ended - tally.statuses["succeeded"], tally.failures)),
        ("bad rows", _with_codes(tally.bad_rows, tally.refusals)),
        ("kept", f"{tally.kept:,} from an earlier run" if tally.kept else ""),
        ("unfinished", f"{tally.submitted - tally.ended:,}" if outcome.interrupted else ""),
        ("time", f"{outcome.wall_s:.1f} s, after {outcome.startup_s:.1f} s to start"),
        ("throughput", _throughput(outcome)),
        ("latency", _latency(tally)),
        ("tokens", f"{tally.input_tokens:,} in, {tally.output_tokens:,} out"),
        ("cost", _cost(tally)),
        ("calls", _calls(tally)),
        ("cached", _cached(tally)),
        ("paid twice?", f"{tally.suspected_double_payments:,}" if tally.suspected_double_payments else ""),
        ("prompt field", ", ".join(name for name, count in tally.prompt_fields.most_common() if count)),
    ]


def _with_codes(total: int, counts: Counter[str]) -> str:
    codes = ", ".join(f"{code} {count:,}" for code, count in counts.most_common())
    return f"{total:,} ({codes})" if total else ""


def _throughput(outcome: Outcome) -> str:
    if not outcome.tally.ended or outcome.wall_s <= 0:
        return ""
    left = f", {duration(outcome.wall_s)} in all" if outcome.wall_s >= 60 else ""
    return f"{outcome.tally.ended / outcome.wall_s:,.0f} prompts/s{left}"


def _cached(tally: Tally) -> str:
    if not tally.cached:
        return ""
    saved = f", ${tally.saved_usd:,.4f} saved" if tally.saved_usd else ""
    return f"{tally.cached:,} ({tally.cached / tally.ended:.0%}){saved}"


def _latency(tally: Tally) -> str:
    times = {name: tally.latency.percentile_s(share) for name, share in PERCENTILES.items()}
    return ", ".join(f"{name} {time_s:.3g} s" for name, time_s in times.items() if time_s is not None)


def _cost(tally: Tally) -> str:
    if tally.cost_usd is None:
        return "unknown: the catalogue has no price" if tally.unpriced else ""
    rest = f", and {tally.unpriced:,} answers without a known price" if tally.unpriced else ""
    return f"${tally.cost_usd:,.4f}{rest}"


def _calls(tally: Tally) -> str:
    return f"{tally.attempts:,} to the provider" + (f", {tally.rate_limited:,} x 429" if tally.rate_limited else "")


def _rounded(time_s: float | None) -> float | None:
    return None if time_s is None else round(time_s, 4)
