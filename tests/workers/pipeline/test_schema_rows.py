"""A thousand rows with a schema, on a provider that breaks and truncates their answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from typing import Any

import aiohttp
import pytest

from tasks.results import PromptResult
from workers.prompt.job import PromptJob, parse
from workers.schema.validator import validator_of
from workers.simulator.answers.replies import object_text
from workers.simulator.request import read_chat
from workers.telemetry.counts import counts

ROWS = 1_000
SEED = 11
PRICE = {"input": 1, "output": 10, "date": "2026-01-01", "source": "a test"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "score": {"type": "number", "minimum": 0, "maximum": 10},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}},
            "required": ["city", "zip"],
        },
    },
    "required": ["name", "born", "score", "tags", "home"],
    "additionalProperties": False,
}


def row(number: int) -> PromptJob:
    fields = {"model": "m", "messages": [{"role": "user", "content": f"Row {number}: who was it?"}], "max_tokens": 500}
    return parse("chat", f"job-{number}", (), {**fields, "promptmill": {"schema": SCHEMA, "repair": 1}}, now=1e9)


def own_object(job: PromptJob) -> Any:
    """What the simulator answers when nothing is wrong."""
    wanted = read_chat(json.dumps(job.body).encode()).wanted
    assert wanted is not None
    return json.loads(object_text(wanted, model="upstream-m", seed=SEED))


@pytest.mark.promise(50)
async def test_a_thousand_rows_fit(pipeline_to: Any, simulate: Any) -> None:
    simulator = await simulate(seed=SEED, faults={"badjson": 0.1, "truncated": 0.05})
    jobs = [row(number) for number in range(ROWS)]
    at_once = asyncio.Semaphore(50)

    async with pipeline_to(simulator.url, price=PRICE) as pipeline:

        async def run(job: PromptJob) -> PromptResult:
            async with at_once:
                result: PromptResult = await pipeline.run(job)
                return result

        results = await asyncio.gather(*map(run, jobs))

    validator = validator_of(SCHEMA)
    good = [(job, result) for job, result in zip(jobs, results, strict=True) if result.ok]
    assert len(good) >= 0.99 * ROWS
    assert all(validator.misfit(result.json()) is None for _, result in good)
    assert [result.json() for _, result in good] == [own_object(job) for job, _ in good]
    assert all(result.error.last_answer for result in results if result.error is not None)
    by_step = Counter(result.repaired for result in results if result.repaired)
    counted = {name.partition(":")[2]: n for name, n in counts.take().items() if name.startswith("schema_misfits")}
    assert counted.pop("failed") == ROWS - len(good)
    assert by_step.keys() == counted.keys() and all(counted[step] >= by_step[step] for step in counted)
    assert {result.repaired for result in results} == {None, "syntax", "longer", "asked_again"}

    calls = await ledger(simulator)
    assert sum(result.attempts for result in results) == len(calls) <= 1.2 * ROWS
    assert_paid(results, calls)
    prompts = defaultdict(list)
    for call in calls:
        prompts[call["job_id"]].append(call["prompt_tokens"])
    assert max(max(tokens) / tokens[0] for tokens in prompts.values()) <= 1.3


def assert_paid(results: list[PromptResult], calls: list[dict[str, Any]]) -> None:
    """Every token that the provider counted is in a result's cost."""
    charged = sum(call["prompt_tokens"] + 10 * call["completion_tokens"] for call in calls) / 1e6
    assert abs(sum(result.cost_usd or 0.0 for result in results) - charged) < 1e-9


async def ledger(simulator: Any) -> list[dict[str, Any]]:
    address = simulator.url.removesuffix("/v1") + "/__ledger"
    async with aiohttp.ClientSession() as http, http.get(address) as response:
        calls: list[dict[str, Any]] = (await response.json())["calls"]
        return calls
