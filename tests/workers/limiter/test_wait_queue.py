"""Whose turn it is."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.wire.vocabulary import PRIORITIES, Priority
from tests.support.examples import examples
from workers.limiter.cost import Cost
from workers.limiter.waiting.wait_queue import Waiter, WaitQueue

waiters = st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abc"), st.floats(0.1, 4))


def waiter(
    loop: asyncio.AbstractEventLoop, priority: Priority = "normal", tenant: str = "", units: float = 1.0
) -> Waiter:
    return Waiter(Cost(), loop.create_future(), priority=priority, tenant=tenant, units=units)


def serve(queue: WaitQueue[Waiter], count: int) -> list[Waiter]:
    served = []
    for _ in range(count):
        first = queue.first()
        assert first is not None
        queue.take(first)
        served.append(first)
    return served


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(waiters, min_size=1, max_size=60), st.data())
async def test_upcoming_foretells_the_turns(wanted: list[tuple[Priority, str, float]], data: st.DataObject) -> None:
    loop = asyncio.get_running_loop()
    queue: WaitQueue[Waiter] = WaitQueue({"a": 2.0})
    everybody = [waiter(loop, *each) for each in wanted]
    for each in everybody:
        queue.join(each)
    for leaver in data.draw(st.lists(st.sampled_from(everybody), unique_by=id)):
        queue.leave(leaver)
    foretold = queue.upcoming(len(everybody))
    assert len(foretold) == len(queue)
    assert serve(queue, len(queue)) == foretold
    assert queue.first() is None


@settings(max_examples=examples(50), deadline=None)
@given(weights=st.tuples(st.integers(1, 5), st.integers(1, 5)), turns=st.integers(1, 120))
async def test_tenants_share_by_weight_to_within_one_quantum(weights: tuple[int, int], turns: int) -> None:
    loop = asyncio.get_running_loop()
    queue: WaitQueue[Waiter] = WaitQueue({"a": weights[0], "b": weights[1]})
    for _ in range(120):
        queue.join(waiter(loop, tenant="a"))
        queue.join(waiter(loop, tenant="b"))
    got = Counter(each.tenant for each in serve(queue, turns))
    assert abs(got["a"] / weights[0] - got["b"] / weights[1]) <= 1 / weights[0] + 1 / weights[1]


async def test_each_class_has_its_least_share() -> None:
    loop = asyncio.get_running_loop()
    queue: WaitQueue[Waiter] = WaitQueue()
    for priority in PRIORITIES:
        for _ in range(200):
            queue.join(waiter(loop, priority))
    got = Counter(each.priority for each in serve(queue, 200))
    assert got["bulk"] == pytest.approx(20, abs=2)
    assert got["normal"] == pytest.approx(40, abs=4)


async def test_a_tenant_that_was_away_has_saved_up_nothing() -> None:
    loop = asyncio.get_running_loop()
    queue: WaitQueue[Waiter] = WaitQueue()
    for _ in range(100):
        queue.join(waiter(loop, tenant="a"))
    serve(queue, 50)
    for _ in range(50):
        queue.join(waiter(loop, tenant="b"))
    got = Counter(each.tenant for each in serve(queue, 20))
    assert got["a"] == pytest.approx(10, abs=1)
