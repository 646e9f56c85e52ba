"""`articles`: the numbers that the articles on this subject name, beside what we measure."""

from __future__ import annotations

from rich.table import Table

from .contestants import bare, ours, scratch
from .embeddings import ten_in_one
from .fleet import Shape
from .provider import running_provider
from .report import Report, Verdict
from .samples import Sample

__all__ = ["run"]

FAST_S, SLOW_S = 0.2, 2.0
FIFTY, MANY = Shape(1, 50), Shape(1, 500)
SLOW_JOBS = 1_000
SESSION_JOBS = 2_000
DIFFERENT = 0.6
"""Of the prompts: the articles' cache saves the other 40 %."""


async def run(report: Report) -> None:
    """Run what can be run, and print it."""
    jobs = report.plan.article_jobs
    async with scratch() as directory:
        async with running_provider(directory, latency_ms=FAST_S * 1000) as provider:
            report.say(f"articles: {jobs:,} jobs, 200 ms, 50 in flight")
            fifty = await ours(FIFTY, jobs, provider=provider, latency_s=FAST_S)
            report.say(f"articles: {SESSION_JOBS:,} of them without a queue")
            loop = await bare(FIFTY, SESSION_JOBS, provider=provider, latency_s=FAST_S)
        async with running_provider(directory, latency_ms=SLOW_S * 1000) as provider:
            report.say(f"articles: {SLOW_JOBS:,} jobs, 2 s, 500 in flight")
            slow = await ours(MANY, SLOW_JOBS, provider=provider, latency_s=SLOW_S)
            report.say(f"articles: {jobs:,} jobs, of which {1 - DIFFERENT:.0%} repeat an earlier one")
            repeated = await ours(
                MANY, jobs, provider=provider, latency_s=SLOW_S, different=int(jobs * DIFFERENT), cache_ttl_s=3_600
            )
        async with running_provider(directory, latency_ms=0) as provider:
            report.say("articles: a session for each call, and one for all")
            pooled = await bare(FIFTY, SESSION_JOBS, provider=provider, latency_s=FAST_S)
            opened = await bare(FIFTY, SESSION_JOBS, provider=provider, latency_s=FAST_S, session_per_call=True)
        report.say("articles: ten texts in ten calls, and in one")
        in_ten_s, in_one_s = await ten_in_one(directory, rounds=report.plan.repeats)
    table = _table(fifty, slow, repeated, pooled, opened)
    table.add_row("ten inputs in one call: 67 % less time", f"{1 - in_one_s / in_ten_s:.0%} less, 200 ms a call")
    report.show(table)
    # A ratio in one run: the bare loop itself needs 3 to 5 % more than the ideal on a machine of two cores.
    report.verdicts.append(
        Verdict(f"{jobs:,} at 200 ms, 50 in flight, x a bare loop", loop.jobs_per_s / fifty.jobs_per_s, at_most=1.05)
    )
    report.verdicts.append(Verdict("calls a job, 40 % repeats, cached", 1 - _saved(repeated), at_most=DIFFERENT))
    report.figures["articles"] = {
        "fifty_wall_s": fifty.wall_s,
        "fifty_x_bare": loop.jobs_per_s / fifty.jobs_per_s,
        "slow_wall_s": slow.wall_s,
        "calls_saved_by_the_cache": _saved(repeated),
        "pooled_per_s": pooled.jobs_per_s,
        "session_per_call_per_s": opened.jobs_per_s,
        "ten_calls_s": in_ten_s,
        "ten_in_one_call_s": in_one_s,
    }


def _table(fifty: Sample, slow: Sample, repeated: Sample, pooled: Sample, opened: Sample) -> Table:
    table = Table(title="What the articles name", title_justify="left")
    for name in ("their number", "ours"):
        table.add_column(name)
    table.add_row("10,000 at 200 ms: 2,000 s one by one, 40 s at 50 in flight", f"{fifty.jobs:,}: {fifty.wall_s:.1f} s")
    table.add_row("1,000 at 2 s: 33 min one by one", f"{slow.wall_s:.1f} s at 500 in flight")
    table.add_row("10 to 50 times as fast as one by one", f"{_speed_up(fifty):.0f} times, {_speed_up(slow):.0f} times")
    table.add_row("10,000 requests a minute", f"{fifty.jobs_per_s * 60:,.0f} with 50 in flight")
    table.add_row("5 to 50 million calls a day", f"{fifty.jobs_per_s * 86_400 / 1e6:,.0f} million with 50 in flight")
    table.add_row("pooled connections: 3 to 5 times", f"{pooled.jobs_per_s / opened.jobs_per_s:.1f} times, without TLS")
    table.add_row(
        "cache saves 40 % of the cost",
        f"{repeated.jobs:,} jobs, 40 % repeats: {repeated.calls:,} calls, {_saved(repeated):.0%} saved",
    )
    return table


def _saved(sample: Sample) -> float:
    return 1 - (sample.calls or 0) / sample.jobs


def _speed_up(sample: Sample) -> float:
    return sample.jobs * sample.latency_s / sample.wall_s
