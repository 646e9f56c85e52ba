"""How long flex answers take is learned: nearer deadlines may go by the tier, and all are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.thorough import thorough
from tests.support.virtual_time import run_virtually
from workers.pipeline.rungs.patience import flex
from workers.pipeline.rungs.patience.latest import LEARN_FROM

from .test_flex import HOUR_S, simulated, until_done

SOON_S = 400.0
"""Far less than the 15 minutes that a flex call may take."""


def jobs_of(chat_job: Any, count: int, *, name: str, deadline_s: float, **options: Any) -> list[Any]:
    began_at = asyncio.get_running_loop().time()
    return [
        chat_job(
            f"{name}-{n}",
            body={"messages": [{"role": "user", "content": f"{name} {n}"}]},
            priority="bulk",
            submitted_at=began_at,
            deadline_at=began_at + deadline_s,
            **options,
        )
        for n in range(count)
    ]


async def run_all(pipeline: Any, jobs: list[Any]) -> list[Any]:
    return await asyncio.gather(*(until_done(pipeline, job) for job in jobs))


@pytest.mark.parametrize(("refuses", "flex_least"), [(0.3, 0.95), thorough(0.9, 0.3), thorough(1.0, 0.0)])
def test_near_deadlines_go_by_flex_once_it_is_known(
    catalog_at: Any, chat_job: Any, free_limits: Any, refuses: float, flex_least: float
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        options = {"latency_ms": 4_000, "flex_latency_ms": 20_000, "jitter": 0.5, "faults": {"flex-full": refuses}}
        async with simulated(catalog_at, free_limits, **options) as (_, pipeline):
            first = await run_all(pipeline, jobs_of(chat_job, 10, name="first", deadline_s=SOON_S))
            assert {result.tier for result in first} == {"standard"}, "15 minutes are left while nothing is known"
            await run_all(pipeline, jobs_of(chat_job, 2 * LEARN_FROM, name="learned", deadline_s=HOUR_S))
            began_at = loop.time()
            results = await run_all(pipeline, jobs_of(chat_job, 40, name="near", deadline_s=SOON_S))
        assert {result.status for result in results} == {"succeeded"}
        assert loop.time() - began_at < SOON_S
        assert not any(result.suspected_double_payment for result in results)
        assert sum(result.tier == "flex" for result in results) >= flex_least * len(results)

    run_virtually(main())


def test_what_is_known_for_long_is_forgotten(catalog_at: Any, chat_job: Any, free_limits: Any) -> None:
    async def main() -> None:
        options = {"latency_ms": 4_000, "flex_latency_ms": 20_000, "jitter": 0.0}
        async with simulated(catalog_at, free_limits, **options) as (_, pipeline):
            await run_all(pipeline, jobs_of(chat_job, LEARN_FROM, name="learned", deadline_s=HOUR_S))
            near = await run_all(pipeline, jobs_of(chat_job, 1, name="near", deadline_s=SOON_S))
            await asyncio.sleep(flex.FRESH_S + 1)
            later = await run_all(pipeline, jobs_of(chat_job, 1, name="later", deadline_s=SOON_S))
        assert (near[0].tier, later[0].tier) == ("flex", "standard")

    run_virtually(main())


@pytest.mark.parametrize(("repeats", "outcome"), [(True, ("succeeded", "standard", True)), (False, ("expired", None))])
def test_a_flex_call_that_takes_too_long_after_all(
    catalog_at: Any, chat_job: Any, free_limits: Any, repeats: bool, outcome: Any
) -> None:
    """Only who permits another call after one that may be paid for is answered in time."""

    async def main() -> None:
        options = {"latency_ms": 4_000, "flex_latency_ms": 20_000, "jitter": 0.0}
        async with simulated(catalog_at, free_limits, **options) as (simulator, pipeline):
            await run_all(pipeline, jobs_of(chat_job, LEARN_FROM, name="learned", deadline_s=HOUR_S))
            simulator.strike({"hang": 1.0}, for_s=100)
            [result] = await run_all(
                pipeline, jobs_of(chat_job, 1, name="near", deadline_s=SOON_S, repeat_timeouts=repeats)
            )
        found = (result.status, result.tier, result.suspected_double_payment)
        assert found[: len(outcome)] == outcome

    run_virtually(main())
