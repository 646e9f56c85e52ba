"""The breakers in Redis: when they open, which process tries, and what closes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.breaker import Reason, SharedBreakers, look
from workers.breaker.health import Target
from workers.breaker.outage import LONGEST_OPEN_S, PROBE_S
from workers.breaker.shared import State
from workers.breaker.window import BreakerPolicy, Window

POLICY = BreakerPolicy(failures=5, window_s=30.0, open_s=5.0)
TARGET = Target("p", "m")
BUSY = Reason("server_error", "the provider is overloaded (503)", 503)
NOW_MS = 1_800_000_000_000


class Shared:
    """What two processes say, at times that the test says."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.of = {name: SharedBreakers(redis, POLICY, process=name) for name in ("a", "b", "c")}
        self.at(0.0)

    def at(self, after_s: float) -> None:
        self.now_s = after_s
        for each in self.of.values():
            each.fixed_now = str(NOW_MS + round(after_s * 1000))

    async def fail(
        self, jobs: Sequence[str], *, process: str = "a", has_status: bool = True, answered: int = 0, ago_s: int = 0
    ) -> Any:
        failing = [(job, has_status) for job in jobs]
        answers = [(ago_s, answered)] if answered else []
        return await self.of[process].report(TARGET, failing=failing, answered=answers, reason=BUSY)

    async def open(self) -> State:
        await self.fail(["job-0"])
        return await self.fail(numbered(5))


def numbered(count: int, *, first: int = 0) -> list[str]:
    return [f"job-{number}" for number in range(first, first + count)]


@pytest.fixture
async def shared(server: RedisServer) -> AsyncIterator[Shared]:
    async with Redis.from_url(server.url) as redis:
        await redis.flushall()
        made = Shared(redis)
        yield made
        for each in made.of.values():
            await each.close()


async def test_five_jobs_open_it_for_all(shared: Shared) -> None:
    assert await shared.fail(["job-0"]) == "watch", "nothing is judged before the others have been asked"
    assert await shared.fail(numbered(4)) is None
    state = await shared.fail(["job-4"], process="b")
    assert isinstance(state, State) and state.is_open and (state.left_s, state.pause_s) == (5.0, 5.0)
    assert state.reason == BUSY
    other = await shared.fail(["job-5"], process="c")
    assert isinstance(other, State) and other.epoch == state.epoch


async def test_a_job_counts_once_whoever_runs_it(shared: Shared) -> None:
    for process in "abcabcabc":
        assert not isinstance(await shared.fail(["poison"], process=process), State)


async def test_failures_without_an_answer_need_two_witnesses(shared: Shared) -> None:
    await shared.fail(numbered(1), has_status=False)
    assert await shared.fail(numbered(20), has_status=False) is None
    state = await shared.fail(["job-20"], process="b", has_status=False)
    assert isinstance(state, State) and state.is_open


async def test_answers_of_any_process_outweigh_failures(shared: Shared) -> None:
    await shared.fail(["job-0"])
    await shared.of["b"].report(TARGET, failing=[], answered=[(0, 5)], reason=None)
    assert await shared.fail(numbered(4)) is None
    await shared.of["b"].report(TARGET, failing=[], answered=[(0, 3)], reason=None)
    assert await shared.fail(numbered(7)) is None
    assert isinstance(await shared.fail(numbered(8)), State)


async def test_answers_from_before_the_failures_are_history(shared: Shared) -> None:
    await shared.fail(["job-0"], answered=1_000, ago_s=10)
    assert isinstance(await shared.fail(numbered(5)), State)


async def test_failures_beyond_the_window_are_forgotten(shared: Shared) -> None:
    await shared.fail(numbered(4))
    shared.at(31.0)
    assert await shared.fail(["late"]) == "watch"
    assert await shared.fail(["late"]) is None


@pytest.mark.parametrize("other", ["b", "c"])
async def test_one_process_of_all_tries(shared: Shared, other: str) -> None:
    await shared.open()
    assert not (await shared.of["a"].claim(TARGET)).is_ours, "not before its time"  # type: ignore[union-attr]
    shared.at(5.0)
    claims = await asyncio.gather(*(each.claim(TARGET) for each in shared.of.values()))
    assert [claim is not None and claim.is_ours for claim in claims].count(True) == 1
    assert {claim.probing_s for claim in claims if claim} == {PROBE_S}
    shared.at(5.0 + PROBE_S)
    claim = await shared.of[other].claim(TARGET)
    assert claim is not None and claim.is_ours, "a process that died does not keep the others for ever"


async def test_a_probe_that_fails_doubles_the_wait(shared: Shared) -> None:
    await shared.open()
    waits, at = [], 5.0
    for _ in range(6):
        shared.at(at)
        await shared.of["a"].claim(TARGET)
        state = await shared.of["a"].settle(TARGET, "fails", BUSY)
        assert state is not None and state.probing_s == 0
        waits.append(state.pause_s)
        at += state.pause_s
    assert waits == [10.0, 20.0, 40.0, LONGEST_OPEN_S, LONGEST_OPEN_S, LONGEST_OPEN_S]


async def test_a_probe_that_works_closes_it_for_all(shared: Shared) -> None:
    await shared.open()
    shared.at(5.0)
    await shared.of["a"].claim(TARGET)
    assert await shared.of["a"].settle(TARGET, "works") is None
    assert await shared.of["b"].claim(TARGET) is None
    assert (await shared.of["b"].read())[1] == {}
    assert await shared.fail(["job-9"]) == "watch", "it begins anew"


async def test_a_probe_that_is_given_up_is_the_next_ones_at_once(shared: Shared) -> None:
    await shared.open()
    shared.at(5.0)
    await shared.of["a"].claim(TARGET)
    await shared.of["a"].settle(TARGET, "released")
    claim = await shared.of["b"].claim(TARGET)
    assert claim is not None and claim.is_ours


async def test_what_comes_too_late_changes_nothing(shared: Shared) -> None:
    await shared.open()
    shared.at(5.0)
    await shared.of["a"].claim(TARGET)
    shared.at(5.0 + PROBE_S)
    await shared.of["b"].claim(TARGET)
    late = await shared.of["a"].settle(TARGET, "fails", BUSY)
    assert late is not None and late.pause_s == 5.0 and late.probing_s > 0


async def test_each_change_is_published(shared: Shared) -> None:
    heard: list[dict[str, Any]] = []
    async with shared.redis.pubsub() as subscription:
        await subscription.subscribe(redis_keys.BREAKER_CHANNEL)
        await shared.open()
        shared.at(5.0)
        await shared.of["a"].claim(TARGET)
        await shared.of["a"].settle(TARGET, "works")
        async with asyncio.timeout(10):
            while len(heard) < 4:
                if message := await subscription.get_message(timeout=1.0):
                    heard.append(message)
    said = [message["data"] for message in heard if message["type"] == "message"]
    assert b'"watch"' in said[0] and b'"open":true' in said[1] and b'"open":false' in said[2]


async def test_a_wiped_redis_knows_of_no_outage(shared: Shared) -> None:
    await shared.open()
    await shared.redis.flushall()
    assert await shared.of["a"].claim(TARGET) is None
    assert await shared.of["a"].settle(TARGET, "fails", BUSY) is None


async def test_every_key_lives_for_a_time(shared: Shared) -> None:
    await shared.fail(["job-0"], has_status=False, answered=3)
    await shared.fail(["job-1"])
    keys = await shared.redis.keys("*")
    assert len(keys) == 4 and all([await shared.redis.ttl(key) > 0 for key in keys])
    await shared.fail(numbered(9))
    keys = await shared.redis.keys("*")
    assert sorted(keys) == [redis_keys.BREAKERS.encode(), redis_keys.BREAKER_COUNTS.encode()]
    assert all([await shared.redis.ttl(key) > 0 for key in keys])


async def test_from_outside(shared: Shared) -> None:
    await shared.open()
    [view] = await look(shared.redis)
    assert (view.provider, view.model, view.opened, view.why) == ("p", "m", 1, BUSY.message)
    shared.at(5.0)
    await shared.of["a"].settle(TARGET, "works")
    [view] = await look(shared.redis)
    assert (view.state, view.opened) == ("closed", 1)


@pytest.mark.parametrize("failures", [2, 5])
async def test_redis_judges_one_process_as_the_process_itself_does(shared: Shared, failures: int) -> None:
    """The rule stands in window.py and in report.lua."""
    for number, (fails, answers) in enumerate([(1, 0), (4, 9), (5, 3), (6, 7), (2, 1), (20, 30)]):
        policy = BreakerPolicy(failures=failures, window_s=30.0)
        target, window = Target("p", f"m-{failures}-{number}"), Window(policy)
        redis = SharedBreakers(shared.redis, policy, process="a")
        redis.fixed_now = str(NOW_MS)
        jobs = numbered(fails)
        for job in jobs:
            window.fail(job, NOW_MS / 1000, has_status=True)
        window.roll(answers, NOW_MS / 1000)
        failing, answered = window.take_failing(), window.take_answered(NOW_MS / 1000)
        await redis.report(target, failing=failing, answered=answered, reason=BUSY)
        state = await redis.report(target, failing=failing, answered=[], reason=BUSY)
        assert isinstance(state, State) == window.is_outage(NOW_MS / 1000), (fails, answers)
        await redis.close()
