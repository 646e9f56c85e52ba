"""Several workers, one provider that fails: what its ledger shows, and what becomes of the jobs."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from workers.breaker.window import BreakerPolicy
from workers.pipeline.retry_policy import RetryPolicy
from workers.prompt.parked import Parked

from .conftest import StartFleet, Worker

IMPATIENT = RetryPolicy(base_s=0.05, cap_s=0.2)


@pytest.fixture
def link(server: RedisServer) -> Iterator[Proxy]:
    """Leads to Redis, and can be cut."""
    link = Proxy(server.port)
    yield link
    link.close()


def calls_of(simulator: Any) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = json.loads(simulator._site.ledger.to_json())["calls"]
    return calls


def jobs_of(chat_job: Any, count: int, **options: Any) -> list[Any]:
    return [chat_job(f"job-{number}", **options) for number in range(count)]


async def until_open(workers: list[Worker], kind: str = "open") -> None:
    await wait_until_async(lambda: all(worker.kind == kind for worker in workers), description="all have stopped")


async def until_closed(workers: list[Worker]) -> None:
    await wait_until_async(lambda: all(worker.kind is None for worker in workers), description="all go on")


@pytest.mark.promise(28)
async def test_row_28_an_outage_fails_no_job_of_the_whole_fleet(
    fleet: StartFleet, simulate: Any, chat_job: Any
) -> None:
    simulator = await simulate("503", latency_ms=5)
    workers = await fleet(simulator.url, count=4, retry=IMPATIENT)
    tasks = [task for worker in workers for task in worker.start(jobs_of(chat_job, 25))]
    await until_open(workers)
    opened_at = time.time()
    await wait_until_async(lambda: workers[0].outage.pause_s >= 2.0, description="two probes have failed")  # type: ignore[union-attr]
    while_open = [call for call in calls_of(simulator) if call["time"] > opened_at + 0.5]
    assert 1 <= len(while_open) <= 3, "one probe a period, of the whole fleet"
    assert not any(task.done() for task in tasks)
    simulator.strike({})
    results = await asyncio.gather(*tasks)
    assert Counter(result.status for result in results) == {"succeeded": 100}
    await until_closed(workers)


async def test_jobs_whose_attempts_are_used_up_wait_too(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("500")
    workers = await fleet(simulator.url, count=1)
    tasks = workers[0].start(jobs_of(chat_job, 5, max_attempts=1))
    await until_open(workers)
    simulator.strike({})
    results = await asyncio.gather(*tasks)
    assert [result.status for result in results].count("succeeded") == 5
    assert all(result.failed_attempts for result in results), "the attempts are in the results all the same"


async def test_a_worker_with_a_broken_network_stops_alone(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    cut, whole = await simulate("close"), await simulate()
    [broken] = await fleet(cut.url, count=1, retry=IMPATIENT)
    [well] = await fleet(whole.url, count=1, first=1)
    tasks = broken.start(jobs_of(chat_job, 20))
    await until_open([broken], kind="failing")
    answered = await asyncio.gather(*well.start(jobs_of(chat_job, 20)))
    assert all(result.ok for result in answered) and well.kind is None
    cut.strike({})
    assert all(result.ok for result in await asyncio.gather(*tasks))


async def test_a_worker_behind_a_bad_gateway_stops_alone(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    cut, whole = await simulate("502-html", latency_ms=20), await simulate(latency_ms=20)
    [broken] = await fleet(cut.url, count=1, retry=IMPATIENT)
    [well] = await fleet(whole.url, count=1, first=1)
    await asyncio.gather(*well.start(jobs_of(chat_job, 100)))
    tasks = broken.start(jobs_of(chat_job, 20))
    await until_open([broken], kind="failing")
    assert well.kind is None, "its answers are more than the other's failures"
    cut.strike({})
    assert all(result.ok for result in await asyncio.gather(*tasks))


@pytest.mark.parametrize("fault", ["close", "html", "529"])
async def test_what_two_workers_see_is_the_providers(
    fleet: StartFleet, simulate: Any, chat_job: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    workers = await fleet(simulator.url, count=3, retry=IMPATIENT)
    tasks = [task for worker in workers[:2] for task in worker.start(jobs_of(chat_job, 20))]
    await until_open(workers)
    simulator.strike({})
    assert all(result.ok for result in await asyncio.gather(*tasks))
    await until_closed(workers)


@pytest.mark.parametrize("fault", ["429", "400", "content-filter", "404"])
async def test_what_a_provider_says_of_the_request_opens_nothing(
    fleet: StartFleet, simulate: Any, chat_job: Any, fault: str
) -> None:
    simulator = await simulate(fault)
    [worker] = await fleet(simulator.url, count=1, retry=IMPATIENT)
    await asyncio.gather(*worker.start(jobs_of(chat_job, 20, max_attempts=2)))
    await worker.health().judged()
    assert worker.kind is None and not worker.health().window.has_failures_to_say


async def test_a_poison_prompt_opens_nothing(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("500")
    [worker] = await fleet(simulator.url, count=1, retry=RetryPolicy(base_s=0.001, cap_s=0.002))
    result = await worker.pipeline.run(chat_job(max_attempts=20))
    assert (result.status, result.attempts) == ("failed", 20) and worker.kind is None


async def test_a_job_that_waits_for_its_turn_is_stopped_at_the_bottom(
    fleet: StartFleet, simulate: Any, chat_job: Any, free_limits: Any
) -> None:
    simulator = await simulate("503")
    gate = asyncio.Event()
    admit = free_limits.admit

    async def admit_later(model: Any, keys: Any, **options: Any) -> Any:
        if options["tenant"] == "late":
            await gate.wait()
        return await admit(model, keys, **options)

    free_limits.admit = admit_later
    [worker] = await fleet(simulator.url, count=1, retry=IMPATIENT, limits=free_limits)
    late = worker.start([chat_job("late", tenant="late")])
    early = worker.start(jobs_of(chat_job, 5))
    await until_open([worker])
    calls = len(calls_of(simulator))
    gate.set()
    await wait_until_async(lambda: "given back" in free_limits.settled, description="its permit is given back")
    assert len(calls_of(simulator)) == calls and "late" not in {call["job_id"] for call in calls_of(simulator)}
    simulator.strike({})
    results = await asyncio.gather(*late, *early)
    assert all(result.ok for result in results) and results[0].attempts == 1


async def test_while_redis_is_away_each_process_has_its_own_breaker(
    fleet: StartFleet, simulate: Any, chat_job: Any, link: Proxy
) -> None:
    simulator = await simulate("503")
    workers = await fleet(simulator.url, count=2, retry=IMPATIENT, redis_url=f"redis://127.0.0.1:{link.port}/0")
    await asyncio.to_thread(link.set, "refuse")
    tasks = [task for worker in workers for task in worker.start(jobs_of(chat_job, 10))]
    await until_open(workers, kind="failing")
    simulator.strike({})
    assert all(result.ok for result in await asyncio.gather(*tasks))


async def test_a_breaker_that_is_open_when_redis_goes_away_closes(
    fleet: StartFleet, simulate: Any, chat_job: Any, link: Proxy
) -> None:
    simulator = await simulate("503")
    workers = await fleet(simulator.url, count=2, retry=IMPATIENT, redis_url=f"redis://127.0.0.1:{link.port}/0")
    tasks = [task for worker in workers for task in worker.start(jobs_of(chat_job, 10))]
    await until_open(workers)
    await asyncio.to_thread(link.set, "refuse")
    simulator.strike({})
    assert all(result.ok for result in await asyncio.gather(*tasks))
    await asyncio.to_thread(link.set, "none")
    probe = workers[0].start([chat_job("after")])  # Redis thinks that it is open; this one finds out
    assert (await probe[0]).ok
    await until_closed(workers)


async def test_a_deaf_process_reads_what_it_does_not_hear(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("503")
    hearing, deaf = await fleet(simulator.url, count=2, retry=IMPATIENT)
    await deaf.channel.close()
    deaf.breakers._fleet._hears = lambda: False
    tasks = hearing.start(jobs_of(chat_job, 5))
    began_at = time.monotonic()
    await until_open([hearing, deaf])
    assert time.monotonic() - began_at < 10.0
    simulator.strike({})
    await asyncio.gather(*tasks)
    await until_closed([hearing, deaf])


async def test_a_new_process_hears_what_was_open_before_it_came(
    fleet: StartFleet, simulate: Any, chat_job: Any
) -> None:
    simulator = await simulate("503")
    [first] = await fleet(simulator.url, count=1, retry=IMPATIENT, policy=BreakerPolicy(open_s=60.0))
    tasks = first.start(jobs_of(chat_job, 5))
    await until_open([first])
    calls = len(calls_of(simulator))
    [second] = await fleet(simulator.url, count=1, first=1, retry=IMPATIENT)
    await until_open([second])
    late = second.start([chat_job("late")])
    await wait_until_async(lambda: second.health().outages, description="it waits")
    assert len(calls_of(simulator)) == calls
    for task in (*tasks, *late):
        task.cancel()
    await asyncio.gather(*tasks, *late, return_exceptions=True)


async def test_the_probe_that_fails_is_no_attempt_of_its_job(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("503")
    [worker] = await fleet(simulator.url, count=1, retry=IMPATIENT)
    tasks = worker.start(jobs_of(chat_job, 6, max_attempts=2))
    await wait_until_async(lambda: worker.outage and worker.outage.pause_s >= 4.0, description="probes have failed")
    probes = [call["job_id"] for call in calls_of(simulator)][-3:]
    simulator.strike({})
    results = await asyncio.gather(*tasks)
    assert all(result.ok for result in results)
    assert all(one != following for one, following in itertools.pairwise(probes)), "another job is the next to try"


async def test_a_deadline_ends_a_job_with_the_providers_error(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("503")
    [worker] = await fleet(simulator.url, count=1, retry=IMPATIENT)
    tasks = worker.start(jobs_of(chat_job, 5, deadline_at=time.time() + 1.5))
    results = await asyncio.gather(*tasks)
    assert {result.status for result in results} == {"expired"}
    assert all(result.error is not None and "its provider failed" in result.error.message for result in results)
    assert any("503" in result.error.message for result in results if result.error)


async def test_a_job_is_parked_while_it_is_open(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("503")
    policy = BreakerPolicy(failures=5, open_s=5.0)
    [worker] = await fleet(simulator.url, count=1, retry=IMPATIENT, park_after_s=5.0, policy=policy)
    ends = await asyncio.gather(*worker.start(jobs_of(chat_job, 20)), return_exceptions=True)
    parked = [end for end in ends if isinstance(end, Parked)]
    assert len(parked) == 20
    left_s = [each.until_s - time.time() for each in parked]
    assert min(left_s) > 3.0 and max(left_s) < 5.0 + 2.0, "within two periods"
    assert len({round(each, 3) for each in left_s}) > 10, "and not all at once"
    assert all(each.memory and each.gap_s for each in parked)


async def test_failures_of_zero_turn_it_off(fleet: StartFleet, simulate: Any, chat_job: Any) -> None:
    simulator = await simulate("503")
    [worker] = await fleet(
        simulator.url, count=1, retry=RetryPolicy(base_s=0.01, cap_s=0.02), policy=BreakerPolicy(failures=0)
    )
    results = await asyncio.gather(*worker.start(jobs_of(chat_job, 20)))
    assert {result.attempts for result in results} == {4} and worker.kind is None
