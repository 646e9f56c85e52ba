"""What looking says is what acquire.lua then gives, and looking changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from config.catalog import Limits
from tasks.wire import redis_keys
from tests.support.examples import examples
from tests.support.redis_server import RedisServer
from workers.limiter import LimiterView, snapshot
from workers.limiter.cost import Cost
from workers.limiter.rate import plan
from workers.limiter.shared.schedule import Ask, Grant, LimiterName, PauseReport, RedisSchedule
from workers.limiter.view import LimiterHashes, mark_listed, view_of

NAME = ("p", "m", "k")
BEGINNING = 1_790_000_000.0


@dataclass
class Worker:
    """One process that asks the real scripts, at times of the test's choosing."""

    redis: Redis
    limits: Limits
    organisation: Limits | None = None
    process: str = "a"
    key_prefix: str = ""
    now: float = BEGINNING
    seq: int = 0
    epoch: int = field(default=0)

    async def acquire(self, costs: Sequence[Cost] = (), **fields: Any) -> Grant:
        self.seq += 1
        ask = Ask(process=self.process, seq=self.seq, backlog=len(costs), costs=costs, epoch=self.epoch, **fields)
        grant = await self._schedule().acquire(ask)
        self.epoch = grant.epoch
        return grant

    async def refuse(self, asked_s: float | None) -> None:
        # Believed at once: after a wait that is doubted, nobody can tell when the others go.
        await self._schedule().pause(PauseReport(epoch=self.epoch, asked_s=asked_s, alone_s=90.0))

    async def peek(self) -> LimiterView:
        of = redis_keys.limiter(*NAME)
        read = (of.clock, of.state, of.processes, of.days, of.organisation)
        hashes: list[Any] = [await self.redis.hgetall(key) for key in read]
        return view_of(NAME, LimiterHashes(*hashes), redis_now=self.now)

    async def next_wait_s(self) -> float:
        """How long the schedule lets one more wait."""
        grant = await self.acquire([Cost()])
        return grant.slots[0] - grant.now if grant.slots else grant.wait_s

    async def last_instant(self, costs: Sequence[Cost]) -> float:
        """When the last of these goes, as time passes."""
        left, instant = list(costs), 0.0
        while left:
            grant = await self.acquire(left)
            if grant.slots:
                instant = grant.slots[-1]
                left = left[len(grant.slots) :]
            else:
                self.now += max(grant.wait_s - grant.horizon_s, 0.05)
                assert self.now < BEGINNING + 86_400, "it is never let go"
        return instant

    def _schedule(self) -> RedisSchedule:
        name, fixed_now = LimiterName(*NAME), f"{self.now:.6f}"
        return RedisSchedule(
            self.redis,
            name,
            plan(self.limits, organisation=self.organisation),
            key_prefix=self.key_prefix,
            fixed_now=fixed_now,
        )


def slack_s(limits: Limits, cost: Cost) -> float:
    """Two turns: what a burst may be worth."""
    return 2 * plan(limits).unit_s(cost) + 0.01


@given(
    rpm=st.none() | st.sampled_from([60, 600, 12_000]),
    tokens=st.sampled_from([{}, {"tpm": 30_000}, {"tpm": 1_000_000}, {"input_tpm": 40_000, "output_tpm": 10_000}]),
    algorithm=st.sampled_from(["bucket", "sliding", "unknown"]),
    size=st.sampled_from([50, 1_000, 5_000]),
    waiting=st.integers(0, 120),
    paused_s=st.none() | st.floats(0.1, 90),
    later_s=st.floats(0, 10),  # no longer than a lease
)
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_what_it_says_is_what_acquire_then_gives(
    redis_server: RedisServer, rpm: int | None, tokens: dict[str, int], size: int, waiting: int, **case: Any
) -> None:
    limits = Limits(rpm=rpm, **tokens, algorithm=case["algorithm"])
    cost = Cost(size * 4 // 5, size // 5)

    async def compare() -> None:
        async with Redis.from_url(redis_server.url) as redis:
            await redis.flushall()
            worker = Worker(redis, limits)
            await worker.acquire(settled=3, reserved_tokens=3 * size, used_tokens=3 * size)
            # An unstated limit would be felt from here on, at a pace that changes as time passes: a test of its own.
            if rpm is not None and case["paused_s"] is not None:
                await worker.refuse(case["paused_s"])
            left = waiting - len((await worker.acquire([cost] * waiting)).slots)
            worker.now += case["later_s"]
            came_at = worker.now
            said = (await worker.peek()).wait_s
            assert said is not None
            gave = max(0.0, await worker.last_instant([cost] * (left + 1)) - came_at)
            assert said == pytest.approx(gave, abs=slack_s(limits, cost))

    asyncio.run(compare())


async def test_nobody_waits_at_a_limiter_that_is_free(client: Redis) -> None:
    worker = Worker(client, Limits(rpm=600))
    await worker.acquire()
    assert (await worker.peek()).wait_s == 0.0


async def test_what_is_sold_is_waited_for(client: Redis) -> None:
    worker = Worker(client, Limits(rpm=60, algorithm="sliding"))
    granted = await worker.acquire([Cost()] * 3)
    said = (await worker.peek()).wait_s
    assert said == pytest.approx(await worker.next_wait_s(), abs=1e-3)
    assert said is not None
    assert said > granted.slots[-1] - granted.now


async def test_those_who_wait_go_first(client: Redis) -> None:
    """The more are waiting, the later: at one a second, a hundred take a hundred seconds."""
    worker = Worker(client, Limits(rpm=60, algorithm="sliding"))
    granted = await worker.acquire([Cost()] * 100)
    view = await worker.peek()
    assert view.waiting == 100 - len(granted.slots) > 50
    assert view.wait_s == pytest.approx(101, rel=0.05)


async def test_large_requests_are_waited_for_to_the_token(client: Redis) -> None:
    """Each takes more than the burst, and pays for the excess before it goes."""
    worker, cost = Worker(client, Limits(tpm=30_000)), Cost(700, 300)
    await worker.acquire(settled=1, reserved_tokens=1_000, used_tokens=1_000)
    left = 8 - len((await worker.acquire([cost] * 8)).slots)
    assert left > 2
    said = (await worker.peek()).wait_s
    assert said == pytest.approx(await worker.last_instant([cost] * (left + 1)) - BEGINNING, abs=0.01)


async def test_who_is_dead_waits_no_more(client: Redis) -> None:
    worker = Worker(client, Limits(rpm=60, max_in_flight=3))
    await worker.acquire([Cost()] * 9, held=3)
    assert (await worker.peek()).waiting == 9
    worker.now += 13
    view = await worker.peek()
    assert (view.waiting, view.in_flight, view.processes, view.wait_s) == (0, 0, 0, 0.0)


@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=6_000)], ids=["unstated", "stated"])
async def test_a_pause_is_waited_for(client: Redis, limits: Limits) -> None:
    worker = Worker(client, limits)
    await worker.acquire([Cost()])
    await worker.refuse(30.0)
    view = await worker.peek()
    assert view.wait_s == pytest.approx(30.0, abs=0.1)
    assert view.paused_for_s == pytest.approx(30.0, abs=1e-3)
    assert view.paused_until == pytest.approx(BEGINNING + 30.0, abs=1e-3)


@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=600, algorithm="sliding")], ids=["unstated", "stated"])
async def test_the_pace_that_429s_have_left(client: Redis, limits: Limits) -> None:
    worker = Worker(client, limits)
    for _ in range(3):
        await worker.acquire(went_free=0 if limits.rpm else 20)
        await worker.refuse(1.0)
        worker.now += 1.5
    waiting = [Cost()] * 60
    left = len(waiting) - len((await worker.acquire(waiting)).slots)
    came_at = worker.now
    view = await worker.peek()
    # The pace of an unstated limit grows while they wait.
    rel = 0.15 if limits.rpm else 0.4
    assert view.wait_s == pytest.approx(await worker.last_instant([Cost()] * (left + 1)) - came_at, rel=rel)
    assert view.pace_share < 1 or limits.rpm is None
    # The pace of an unstated limit is forgotten when it has grown tenfold: then nothing is known to be limited.
    worker.now += 3_600
    later = await worker.peek()
    assert later.wait_s == 0.0
    assert (limits.rpm is None) == (not later.permitted_per_minute)


async def test_a_window_that_refusals_have_shown_is_waited_for(client: Redis) -> None:
    worker = Worker(client, Limits())
    await worker.acquire(went_free=60)
    for _ in range(3):
        await worker.refuse(None)
        worker.now += 6.0
        await worker.acquire()
    view = await worker.peek()
    assert view.wait_s is not None and 35.0 < view.wait_s < 62.0
    assert await worker.next_wait_s() == pytest.approx(view.wait_s, abs=0.1)


async def test_a_learned_limit_lifts_the_pace_that_a_429_has_left(client: Redis) -> None:
    worker = Worker(client, Limits())
    await worker.acquire(went_free=5)
    await worker.refuse(1.0)
    worker.now += 1.5
    worker.limits = Limits(rpm=60_000)
    assert len((await worker.acquire([Cost()] * 20)).slots) == 20
    assert (await worker.peek()).permitted_per_minute["requests"] > 50_000


async def test_the_organisation_s_limit_counts_too(client: Redis) -> None:
    worker = Worker(client, Limits(rpm=6_000), organisation=Limits(rpm=60))
    await worker.acquire([Cost()] * 3)
    view = await worker.peek()
    assert view.wait_s == pytest.approx(await worker.next_wait_s(), abs=1e-3)
    assert view.wait_s is not None
    assert view.wait_s > 1
    assert view.permitted_per_minute["requests"] > 1_000


async def test_the_organisation_s_tokens_count_too(client: Redis) -> None:
    worker = Worker(client, Limits(rpm=6_000), organisation=Limits(tpm=60_000, algorithm="bucket"))
    assert (await worker.peek()).organisation_permitted_per_minute == {}
    await worker.acquire([Cost(500, 500)] * 4)
    view = await worker.peek()
    assert view.organisation_used_last_minute["tokens"] == 4_000
    assert view.organisation_permitted_per_minute["tokens"] == pytest.approx(60_000, rel=0.02)
    # Its bins are half a burst, 300 tokens, and the next may begin in one that is partly sold.
    assert view.wait_s is not None and 2.0 < view.wait_s < 5.0


@pytest.mark.parametrize("calls", [10, 200])
async def test_full_places_become_free_as_calls_end(client: Redis, calls: int) -> None:
    worker = Worker(client, Limits(max_in_flight=10))
    for _ in range(calls):
        await worker.acquire([Cost()], held=9)
        worker.now += 0.5
    await worker.acquire([Cost()] * 5, held=10)
    view = await worker.peek()
    assert (view.in_flight, view.waiting) == (10, 5)
    assert view.wait_s == pytest.approx(3.0, rel=0.15), "six calls must end, at two a second"


async def test_nobody_can_tell_when_the_first_call_ends(client: Redis) -> None:
    worker = Worker(client, Limits(max_in_flight=10))
    await worker.acquire(held=10)
    assert (await worker.peek()).wait_s is None


async def test_a_day_that_is_used_up_ends_at_midnight(client: Redis) -> None:
    worker = Worker(client, Limits(rpd=3))
    await worker.acquire([Cost()] * 3)
    view = await worker.peek()
    refused = await worker.acquire([Cost()])
    assert refused.reason == "day"
    assert view.wait_s == pytest.approx(refused.wait_s, abs=1e-3)
    assert (view.used_today, view.requests_per_day) == (3, 3)


@pytest.mark.parametrize(
    ("limits", "organisation"), [(Limits(rpm=60_000), None), (Limits(), Limits(rpm=60_000)), (Limits(tpm=60_000), None)]
)
async def test_what_took_the_place_of_a_lost_schedule_is_waited_for(
    client: Redis, limits: Limits, organisation: Limits | None
) -> None:
    worker = Worker(client, limits, organisation)
    await worker.acquire([Cost()])
    await client.flushall()
    assert (await worker.acquire([Cost()])).slots == []
    wait_s = (await worker.peek()).wait_s
    assert wait_s is not None
    assert wait_s > 3.0
    assert wait_s == pytest.approx(await worker.next_wait_s(), abs=1e-2)


async def test_a_clock_that_was_set_back_does_not_prolong_a_pause(client: Redis) -> None:
    worker = Worker(client, Limits(rpm=60))
    await worker.acquire()
    await worker.refuse(30.0)
    worker.now -= 3_600
    before = await worker.peek()
    await worker.acquire()
    after = await worker.peek()
    for view in (before, after):
        assert view.paused_for_s == pytest.approx(30.0, abs=1e-3)
        assert view.paused_until == pytest.approx(worker.now + 30.0, abs=1e-3)


async def test_looking_changes_nothing(client: Redis) -> None:
    limits = Limits(rpm=60, tpm=9_000, rpd=50, max_in_flight=5)
    worker = Worker(client, limits, organisation=Limits(rpm=600), key_prefix="a:", now=time.time())
    await worker.acquire([Cost(20, 30)] * 9, settled=2, reserved_tokens=100, used_tokens=80)
    await worker.refuse(2.0)
    await mark_listed(client, [LimiterName(*NAME)], now=worker.now, key_prefix="a:")
    before = {key: await client.dump(key) for key in await client.keys()}
    assert await snapshot(client) == []
    [view] = await snapshot(client, key_prefix="a:")
    assert view.waiting > 0
    assert {key: await client.dump(key) for key in await client.keys()} == before
