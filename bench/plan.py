"""How much each benchmark does: the whole run takes about half an hour, a quick one five."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUICK", "WHOLE", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes, in jobs unless the name says otherwise."""

    repeats: int
    jobs: int
    few_in_flight_jobs: int
    """Through 50 places: 200 ms each makes them slow."""
    stock_jobs: int
    latency_jobs: int
    enqueued_singly: int
    enqueued_in_bulk: int
    idle_s: float
    article_jobs: int
    held_jobs: int
    """In flight at once, to see what one weighs."""
    rows: int
    windows: bool
    """Whether `limiter` measures whole windows of a minute, each scenario for its own time."""
    limiter_s: float
    """How long each of the other scenarios takes where it doesn't."""
    token_runs: int
    """Of each scenario in which tokens are limited."""
    free_jobs: int
    parked_jobs: int
    """Of the model whose limit is used up."""
    questions: int
    texts: int
    """As embeddings."""
    streams: int
    """Answers read at once; the next says how many tokens each has."""
    stream_tokens: int


WHOLE = Plan(
    repeats=3,
    jobs=10_000,
    few_in_flight_jobs=2_000,
    stock_jobs=1_500,
    latency_jobs=400,
    enqueued_singly=4_000,
    enqueued_in_bulk=40_000,
    idle_s=10.0,
    article_jobs=10_000,
    held_jobs=2_000,
    rows=100_000,
    windows=True,
    limiter_s=0.0,
    token_runs=2,
    free_jobs=1_000,
    parked_jobs=5_000,
    questions=1_319,
    texts=200_000,
    streams=200,
    stream_tokens=500,
)

QUICK = Plan(
    repeats=1,
    jobs=2_500,
    few_in_flight_jobs=400,
    stock_jobs=500,
    latency_jobs=100,
    enqueued_singly=1_000,
    enqueued_in_bulk=10_000,
    idle_s=3.0,
    article_jobs=1_000,
    held_jobs=1_000,
    rows=10_000,
    windows=False,
    limiter_s=20.0,
    token_runs=0,
    free_jobs=200,
    parked_jobs=500,
    questions=200,
    texts=10_000,
    streams=200,
    stream_tokens=150,
)
