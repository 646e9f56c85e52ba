"""Promptmill's engine: `celery -A workers worker`.

The rooms, top to bottom; each imports only what stands below it, and its `__init__` lists its files in reading order:

    cli          registers the commands
    commands/    faces for people: run, metrics, doctor, limits, status, cancel, dead, cache
    celery/      our place in Celery: app, tasks, request, consumer, heartbeat, and how a worker is put together
    pipeline/    one prompt's life; no Celery, no Redis
    broker/      Redis -> worker: messages under leases
    answers/     answers that serve equal prompts again, and calls that they share
    limiter/     requests wait here until the provider will take them
    breaker/     whether a provider works, as all workers know it
    http/        HTTP to the providers
    streams/     answers on their way to those that read them as they come
    schema/      an answer that has to fit a JSON Schema: what is wrong with it, and what mends it
    results/     worker -> Redis: results in batches
    providers/   their wire formats; no I/O
    prompt/      the words: a job, a failure
    pool/        hundreds of jobs on one loop
    checks       what is looked at before a worker takes jobs
    redis/       our own Redis: its clock, patience with it, scripts that travel together, what others publish
    telemetry/   logs and counters
    simulator/   a provider for tests, trials and benchmarks, which knows nothing of the rest
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .celery.app import app as app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # The app reads the settings when it is made; `promptmill simulate --help` must work without any.
    if name == "app":
        from .celery.app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
