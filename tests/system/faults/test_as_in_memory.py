"""What a test of `InMemoryQueue` sees is what workers do: the same jobs through both, for each kind and option."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from tasks import JobFailed, PromptmillError, PromptResult
from tasks.blocking import SyncQueue
from tasks.errors import failure_class
from tasks.testing import InMemoryQueue
from tasks.wire.kinds import KINDS

from .harness import MESSAGES, Provider, World

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}

PROMPTS: dict[str, Any] = {
    "chat": {"messages": MESSAGES},
    "embed": {"input": ["one", "two"]},
    "respond": {"input": "How many?"},
    "complete": {"prompt": "How many?"},
    "moderate": {"input": "How many?"},
}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"stream": True, "schema": SCHEMA, "repair": 1},
    {"schema": SCHEMA},
    {"repair": 1},
    {"priority": "bulk", "tenant": "t", "tag": "hard"},
    {"deadline_s": 60, "delay_s": 0.1},
    {"metadata": {"mine": [1, None]}},
    {"metadata": 2**70},
    {"max_attempts": 1, "repeat_timeouts": True},
    {"fallbacks": ["other"], "fallback_on": ["auth"]},
    {"fallbacks": ["unheard-of"]},
    {"sample": 1, "cache_ttl_s": 0},
    {"too_long": "truncate"},
    {"too_long": "away"},
    {"vectors": "base64"},
    {"background": True},
    {"extra_body": {"stream": True}},
    {"extra_body": {"user": "u"}, "n": 2},
    {"service_tier": "flex"},
    {"service_tier": "priority", "stream": True},
    {"extra_body": {"service_tier": "scale"}, "priority": "bulk"},
    {"service_tier": 7},
    {"model": "unheard-of"},
    {"model": "refuses"},
    {"model": "refuses", "stream": True},
    {"model": "filters", "metadata": 1},
]

CASES = [{"kind": kind, "model": "plain", **PROMPTS[kind], **options} for kind in KINDS for options in OPTIONS]

MODELS = {
    "plain": (),
    "other": (),
    "refuses": ("--fault", "400=1"),
    "filters": ("--fault", "content-filter=1"),
}


def catalog(world: World) -> str:
    apis = [kind.api for kind in KINDS.values()]
    tables = []
    for model, options in MODELS.items():
        provider = world.enter(Provider("--latency-ms", "20", "--dimensions", "8", *options))
        tables.append(
            f'[providers.{model}]\nbase_url = "{provider.base_url}"\napi_keys = ["FAULTS_API_KEY"]\napis = {apis}\n'
            f'[models.{model}]\nprovider = "{model}"\nmax_tokens_per_input = 1000\n'
        )
    path = world.directory / "every-kind.toml"
    path.write_text("\n".join(tables))
    return str(path)


def test_jobs_end_in_memory_as_with_workers(world: World) -> None:
    world.start_redis()
    world.start_worker(concurrency=200, environ={"PROMPTMILL_CATALOG": catalog(world)})
    submitted = [submit(world.queue, case) for case in CASES]
    with_workers = [each if isinstance(each, str) else outcome(each) for each in submitted]
    odd = []
    for case, real in zip(CASES, with_workers, strict=True):
        with InMemoryQueue(answering(real), models=MODELS).sync as queue:
            job = submit(queue, case)
            in_memory = job if isinstance(job, str) else outcome(job)
        if seen(in_memory) != seen(real):
            odd.append((case, seen(real), seen(in_memory)))
    assert not odd


def submit(queue: SyncQueue, case: dict[str, Any]) -> Any:
    """The job, or why it is refused."""
    try:
        return queue.submit(**case)
    except PromptmillError as error:
        return f"{type(error).__name__}: {error}".partition("Known models")[0]


def outcome(job: Any) -> tuple[PromptResult, str, list[tuple[str, str, Any]]]:
    """Result, status, and the events of a reader that comes after the end."""
    try:
        result = job.result(timeout_s=60)
    except JobFailed as error:
        assert error.result is not None
        result = error.result
    events: list[tuple[str, str, Any]] = []
    try:
        for kind, several in groupby(job.events(timeout_s=60), key=lambda event: event.kind):
            each = list(several)
            events.append((kind, "".join(event.text for event in each), each[-1].usage))
    except JobFailed as error:
        events.append((type(error).__name__, str(error), None))
    return result, job.status(), events


def answering(real: Any) -> Callable[[dict[str, Any]], Any]:
    """What a test would have the queue in memory answer for that outcome."""

    def answer(_: dict[str, Any]) -> Any:
        result = real[0]
        return result.response if result.ok else failure_class(result.error.code)(result.error.message)

    return answer


def seen(outcome: Any) -> Any:
    """What both have to agree on."""
    if isinstance(outcome, str):
        return outcome
    result, status, events = outcome
    row = result.to_dict()
    alike = {name: row[name] for name in ("status", "text", "response", "model", "tier", "metadata", "attempts")}
    if result.ok:
        return alike, row["usage"], result.failed_attempts, status, events
    alike["error"] = (row["error"]["code"], row["error"]["message"])
    attempts = [[each.code for each in found] for found in (result.failed_attempts, result.error.attempts)]
    return alike, attempts, status, [event for event in events if event[0] != "started"]
