"""Equal prompts under way in several workers at once: one is sent, and what becomes of it becomes of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tasks.wire import redis_keys
from tests.support.scripted import Answer, Asked, ScriptedProvider, completion
from tests.support.waiting import PATIENCE_S
from tests.workers.broker.broker import list_name
from workers.pipeline.retry_policy import RetryPolicy
from workers.prompt.parked import Parked

from .fleet import BODY, PRIORITIES, ends, submit

DELAYED = "pm:delayed:prompts"


@pytest.fixture
def scripted() -> Any:
    made: list[ScriptedProvider] = []

    def make(script: Any) -> ScriptedProvider:
        made.append(ScriptedProvider(script))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def held_until(gate: threading.Event) -> Callable[[Asked], Answer]:
    """The first call is answered when the test says so, any other at once."""

    def answer(asked: Asked) -> Answer:
        assert asked.number or gate.wait(PATIENCE_S)
        return Answer(200, completion())

    return answer


@pytest.mark.promise(29)
async def test_a_thousand_equal_prompts_are_one_call(fleet: Any, client: Any, simulate: Any, wait_until: Any) -> None:
    provider = await simulate(latency_ms=300)
    async with fleet(provider.url, size=4) as workers:
        submit(workers, 1_000)
        await wait_until(lambda: len(workers.results) == 1_000, "all are answered")
    assert (provider.stats()["calls"], ends(workers)) == (1, {("succeeded", False): 1, ("succeeded", True): 999})
    assert len({each.text for each in workers.results.values()}) == 1
    assert {each.attempts for each in workers.results.values() if each.cached} == {0}
    assert len(workers.parked) <= 1_000, "nobody was parked twice"
    assert not client.keys("pm:flight:*") and not client.exists(DELAYED)


@pytest.mark.promise(29)
async def test_a_killed_leader_costs_one_more_call(fleet: Any, scripted: Any, wait_until: Any) -> None:
    gate = threading.Event()
    provider = scripted(held_until(gate))
    async with fleet(provider.base_url, size=4) as workers:
        submit(workers, 200)
        await wait_until(lambda: len(workers.parked) >= 199 and len(provider.asked) == 1, "the others wait")
        (leader,) = [each for each in workers.workers if each.answers._courier.leads]
        leader.kill()
        await wait_until(lambda: len(workers.results) == 200, "all are answered")
        gate.set()
    assert len(provider.asked) == 2
    assert ends(workers) == {("succeeded", False): 1, ("succeeded", True): 199}


async def test_two_messages_of_one_job_are_one_call(fleet: Any, client: Any, scripted: Any, wait_until: Any) -> None:
    gate = threading.Event()
    provider = scripted(held_until(gate))
    async with fleet(provider.base_url) as workers:
        workers.submit("job", BODY)
        await wait_until(lambda: provider.asked, "it is called")
        workers.submit("job", BODY)
        await wait_until(lambda: workers.parked or workers.results, "its other message waits")
        gate.set()
        # In the order in which a message goes from one to the next.
        places = (DELAYED, list_name(redis_keys.QUEUE, PRIORITIES["normal"]), "unacked")
        await wait_until(lambda: not any(map(client.exists, places)), "both have ended")
    assert len(provider.asked) == 1


async def test_a_refused_request_fails_all_with_one_call(fleet: Any, scripted: Any, wait_until: Any) -> None:
    def refuse(asked: Any) -> Answer:
        time.sleep(0.3)
        return Answer(400, {"error": {"message": "no such parameter"}})

    provider = scripted(refuse)
    async with fleet(provider.base_url, size=4) as workers:
        submit(workers, 100)
        await wait_until(lambda: len(workers.results) == 100, "all have failed")
        results = list(workers.results.values())
        assert len(provider.asked) == 1
        assert {(each.error.code, each.error.http_status) for each in results} == {("bad_request", 400)}
        assert sorted(each.attempts for each in results) == [0] * 99 + [1]
        workers.submit("later", BODY, submitted_at=time.time() + 0.1)
        await wait_until(lambda: "later" in workers.results, "a later job makes a call of its own")
    assert len(provider.asked) == 2


async def test_stock_producers_share_a_failure_too(fleet: Any, scripted: Any, wait_until: Any) -> None:
    def refuse(asked: Any) -> Answer:
        time.sleep(0.3)
        return Answer(400, {"error": {"message": "no such parameter"}})

    provider = scripted(refuse)
    async with fleet(provider.base_url) as workers:
        submit(workers, 20, submitted_at=None)  # nobody knows when they were submitted, but that they waited
        await wait_until(lambda: len(workers.results) == 20, "all have failed")
    assert len(provider.asked) == 1


async def test_one_at_a_time_tries_again_what_is_not_shared(fleet: Any, scripted: Any, wait_until: Any) -> None:
    running, most = 0, 0

    def break_down(asked: Any) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.1)
        running -= 1
        return Answer(500, {}) if asked.number < 3 else Answer(200, completion())

    provider = scripted(break_down)
    async with fleet(provider.base_url, retry=RetryPolicy(max_attempts=1)) as workers:
        submit(workers, 40)
        await wait_until(lambda: len(workers.results) == 40, "all have ended")
    assert (len(provider.asked), most) == (4, 1)
    assert ends(workers) == {("failed", False): 3, ("succeeded", False): 1, ("succeeded", True): 36}
    assert len(workers.parked) <= 45, "those that do not take over are left in peace"


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_another_takes_over_from_a_job_that_ends(fleet: Any, scripted: Any, wait_until: Any, how: str) -> None:
    gate = threading.Event()
    provider = scripted(held_until(gate))
    async with fleet(provider.base_url, size=1) as workers:
        workers.submit("first", BODY, **({"deadline_s": 3} if how == "deadline" else {}))
        await wait_until(lambda: provider.asked, "it is called")
        submit(workers, 20)
        await wait_until(lambda: len(workers.parked) >= 20, "the others wait")
        if how == "cancel":
            (worker,) = workers.workers
            next(iter(worker._running)).cancel()
        await wait_until(lambda: len({*workers.results} - {"first"}) == 20, "the others are answered")
        gate.set()
    assert len(provider.asked) == 2
    assert sum(each.ok for each in workers.results.values()) == 20


async def test_a_follower_keeps_its_own_deadline(fleet: Any, scripted: Any, wait_until: Any) -> None:
    gate = threading.Event()
    provider = scripted(held_until(gate))
    async with fleet(provider.base_url) as workers:
        workers.submit("first", BODY)
        await wait_until(lambda: provider.asked, "it is called")
        workers.submit("soon", BODY, deadline_s=0.4)
        workers.submit("later", BODY, deadline_s=600)
        await wait_until(lambda: "soon" in workers.results, "its deadline has passed")
        assert workers.results["soon"].status == "expired"
        assert "first" not in workers.results
        gate.set()
        await wait_until(lambda: len(workers.results) == 3, "the answer wakes the other before its deadline")
    assert workers.results["later"].cached
    assert len(provider.asked) == 1


async def test_a_more_urgent_job_does_not_wait_for_a_parked_one(
    fleet: Any, free_limits: Any, simulate: Any, wait_until: Any
) -> None:
    provider = await simulate()
    free_limits.raises = [Parked(time.time() + 1.5, "the limit's turn is far away", gap_s=0.5)]
    async with fleet(provider.url, limits=free_limits) as workers:
        workers.submit("bulk", BODY, priority="bulk")
        await wait_until(lambda: workers.parked == ["bulk"], "it waits for its limit")
        workers.submit("bulk-2", BODY, priority="bulk")
        await wait_until(lambda: len(workers.parked) == 2, "an equal one waits with it")
        assert provider.stats()["calls"] == 0
        workers.submit("urgent", BODY, priority="interactive")
        await wait_until(lambda: len(workers.results) == 3, "all are answered")
    assert not workers.results["urgent"].cached
    assert workers.results["bulk"].cached and workers.results["bulk-2"].cached
    assert provider.stats()["calls"] == 1


async def test_a_cut_answer_is_for_those_under_way_alone(fleet: Any, scripted: Any, wait_until: Any) -> None:
    def cut(asked: Any) -> Answer:
        time.sleep(0.3)
        body = completion("the beginn")
        body["choices"][0]["finish_reason"] = "length"
        return Answer(200, body)

    provider = scripted(cut)
    async with fleet(provider.base_url) as workers:
        submit(workers, 20)
        await wait_until(lambda: len(workers.results) == 20, "all are answered")
        assert (len(provider.asked), ends(workers)["succeeded", True]) == (1, 19)
        workers.submit("later", BODY, submitted_at=time.time() + 0.1)
        await wait_until(lambda: "later" in workers.results, "it was not stored")
    assert (len(provider.asked), workers.results["later"].cached) == (2, False)


async def test_nobody_waits_in_a_redis_that_was_wiped(fleet: Any, client: Any, scripted: Any, wait_until: Any) -> None:
    gate = threading.Event()
    provider = scripted(held_until(gate))
    async with fleet(provider.base_url) as workers:
        workers.submit("first", BODY)
        await wait_until(lambda: provider.asked, "it is called")
        client.flushall()
        workers.submit("second", BODY)
        await wait_until(lambda: "second" in workers.results, "it does not wait for a flight that is gone")
        workers.submit("third", BODY)
        await wait_until(lambda: "third" in workers.results, "and the cache goes on")
        gate.set()
    assert workers.results["third"].cached
    assert len(provider.asked) == 2


async def test_more_than_one_script_wakes_are_woken(fleet: Any, client: Any, scripted: Any, wait_until: Any) -> None:
    gate = threading.Event()
    provider = scripted(held_until(gate))
    async with fleet(provider.base_url, size=2, places=400) as workers:
        submit(workers, 2_100)
        await wait_until(lambda: len(workers.parked) >= 2_099, "all but one wait")
        gate.set()
        await wait_until(lambda: len(workers.results) == 2_100, "all are answered")
    assert len(provider.asked) == 1
    assert not client.keys("pm:flight:*")


async def test_who_parks_after_the_end_goes_back_at_once(
    fleet: Any, client: Any, simulate: Any, wait_until: Any
) -> None:
    """The call ends after the follower has looked, and before its message is parked."""
    provider = await simulate(latency_ms=300)
    async with fleet(provider.url, size=1) as workers:
        (worker,) = workers.workers
        late: list[Any] = []
        park, worker.park = worker.park, lambda *args: late.append(args)
        submit(workers, 2)
        await wait_until(lambda: len(workers.results) == 1 and late, "one is answered, and the other is about to park")
        await wait_until(lambda: not client.keys("pm:flight:*"), "the flight has ended")
        park(*late[0])
        assert not client.exists(DELAYED)
        await wait_until(lambda: len(workers.results) == 2, "it is taken again, and finds the answer")
    assert provider.stats()["calls"] == 1


async def test_a_parked_leader_feeds_no_lane(fleet: Any, free_limits: Any, simulate: Any, wait_until: Any) -> None:
    """Those behind it may find an answer, so each of them is started."""
    provider = await simulate()
    free_limits.raises = [Parked(time.time() + 0.3, "the limit's turn is far away", gap_s=0.5)]
    async with fleet(provider.url, size=1, limits=free_limits) as workers:
        (worker,) = workers.workers
        gaps: list[float] = []
        park = worker.park

        def note(tag: str, again: Parked) -> None:
            gaps.append(again.gap_s)
            park(tag, again)

        worker.park = note
        workers.submit("first", BODY)
        await wait_until(lambda: workers.results, "it is answered")
    assert gaps == [0.0]


async def test_a_lead_that_comes_as_its_job_stops(fleet: Any, client: Any, simulate: Any, wait_until: Any) -> None:
    provider = await simulate()
    stopped = []
    async with fleet(provider.url, size=1) as workers:
        (worker,) = workers.workers
        hear = worker.answers._courier._hear

        def hear_and_stop(looks: Any, replies: Any) -> None:
            hear(looks, replies)
            stopped.extend(client.keys("pm:flight:*"))
            next(iter(worker._running)).cancel()  # it has its lead, and has not heard of it

        worker.answers._courier._hear = hear_and_stop
        workers.submit("stopped", BODY)
        await wait_until(lambda: stopped and not client.keys("pm:flight:*"), "another may lead")
        await wait_until(lambda: not worker.answers._courier.leads, "it is no longer renewed")
    assert provider.stats()["calls"] == 0
