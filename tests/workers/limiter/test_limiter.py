"""One limiter in one process, on a virtual clock: order, dispatch, pauses, lost replies, Redis away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from typing import Any

import pytest

from config.catalog import Limits
from tasks.results import Usage
from tasks.wire.vocabulary import Priority
from tests.support.virtual_time import VirtualLoop, run_virtually
from workers.limiter.cost import UNKNOWN, Cost
from workers.limiter.errors import TooLate
from workers.limiter.estimate import Estimator
from workers.limiter.heard.headers import LearnedLimit
from workers.limiter.limiter import Limiter, LimiterOptions
from workers.limiter.permit import Permit
from workers.limiter.rate import BIN_S, Plan, plan
from workers.limiter.shared.schedule import Grant
from workers.limiter.waiting.wait_queue import Waiter, WaitQueue
from workers.prompt.parked import Parked

from .ledger import Ledger
from .plain import PlainSchedule

TEN_A_SECOND = plan(Limits(rpm=600, algorithm="sliding"))


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtually(test(*args, **kwargs))

    return run


@asynccontextmanager
async def limiter_of(
    plan_: Plan = TEN_A_SECOND, *, when_away: Any = "degraded", degraded_for_s: float = 60.0, live: int = 1
) -> AsyncIterator[tuple[Limiter, PlainSchedule]]:
    schedule = PlainSchedule(plan_, live=live)
    loop = asyncio.get_running_loop()
    options = LimiterOptions("p", when_away, degraded_for_s)
    limiter = Limiter(plan_, schedule, options=options, estimator=Estimator(), now=loop.time)
    try:
        yield limiter, schedule
    finally:
        schedule.is_away = False
        await limiter.close()


async def admit(limiter: Limiter, cost: Cost | None = None, **fields: Any) -> Permit:
    waiter = Waiter(cost or Cost(), asyncio.get_running_loop().create_future(), **fields)
    return await limiter.admit(waiter)


async def sent_at(limiter: Limiter, cost: Cost | None = None, **fields: Any) -> float:
    permit = await admit(limiter, cost, **fields)
    permit.settle(Usage(permit.cost.input_tokens, permit.cost.output_tokens))
    return asyncio.get_running_loop().time()


@virtually
async def test_requests_go_at_the_pace_and_never_early() -> None:
    async with limiter_of() as (limiter, schedule):
        times = await asyncio.gather(*(sent_at(limiter) for _ in range(100)))
    pace = TEN_A_SECOND.dimensions[0]
    ledger = Ledger()
    ledger.add(times)
    assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=pace.burst) <= 0.02
    assert all(sent >= slot - 0.0011 for sent, slot in zip(sorted(times), schedule.sold, strict=True))
    assert max(times) - min(times) == pytest.approx(99 / pace.rate_per_s, rel=0.03)


@virtually
async def test_one_caller_serves_hundreds() -> None:
    async with limiter_of(plan(Limits(rpm=12_000))) as (limiter, schedule):
        await asyncio.gather(*(sent_at(limiter) for _ in range(1_000)))
        assert len(schedule.asks) < 50


@virtually
async def test_within_a_class_the_first_to_come_is_the_first_to_go() -> None:
    async with limiter_of() as (limiter, _):
        times = await asyncio.gather(*(sent_at(limiter) for _ in range(30)))
    assert list(times) == sorted(times)


@virtually
async def test_interactive_goes_first_and_bulk_is_not_starved() -> None:
    order: list[Priority] = []

    async def one(limiter: Limiter, priority: Priority) -> None:
        await sent_at(limiter, priority=priority)
        order.append(priority)

    async with limiter_of() as (limiter, _):
        bulk: list[Priority] = ["bulk"] * 20
        urgent: list[Priority] = ["interactive"] * 60
        await asyncio.gather(*(one(limiter, priority) for priority in bulk + urgent))
    first = order[:55]
    assert first.count("interactive") >= 48
    gaps = [index for index, each in enumerate(first) if each == "bulk"]
    assert gaps, "bulk starved"
    assert max(later - earlier for earlier, later in pairwise(gaps)) <= 12


@virtually
async def test_a_cancelled_waiter_leaves_its_turn_to_the_next() -> None:
    async with limiter_of() as (limiter, _):
        tasks = [asyncio.create_task(sent_at(limiter)) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks[5:10]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(each, asyncio.CancelledError) for each in done) == 5
    assert sum(isinstance(each, float) for each in done) == 15
    assert limiter.waiting_of("", "normal") == 0 and limiter.in_flight == 0


@virtually
async def test_a_permit_given_to_a_cancelled_task_is_given_back() -> None:
    async with limiter_of() as (limiter, _):
        waiter = Waiter(Cost(), asyncio.get_running_loop().create_future())
        task = asyncio.create_task(limiter.admit(waiter))
        while not waiter.answer.done():
            await asyncio.sleep(0.001)
            if waiter.answer.done():
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
            raise asyncio.CancelledError  # it may have got through before the cancel
        assert limiter.in_flight <= 1


@virtually
async def test_what_can_not_come_in_time_is_refused_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, _):
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(100)]
        await asyncio.sleep(0.5)
        asked_at = loop.time()
        with pytest.raises(TooLate):
            await admit(limiter, until_s=loop.time() + 2.0)
        assert loop.time() == asked_at
        await asyncio.gather(*others)


@virtually
async def test_who_is_too_late_in_the_line_is_told_and_takes_no_slot() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, _):
        late = asyncio.create_task(admit(limiter, priority="bulk", until_s=loop.time() + 1.0))
        others = [asyncio.create_task(sent_at(limiter, priority="interactive")) for _ in range(8)]
        await asyncio.sleep(0)
        limiter.overhear_pause(2, 3.0)
        with pytest.raises(TooLate):
            await late
        await asyncio.gather(*others)


@virtually
async def test_a_far_slot_is_parked_and_jobs_come_back_one_by_one() -> None:
    async with limiter_of() as (limiter, _):
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(100)]
        await asyncio.sleep(0.5)
        untils = []
        for _ in range(5):
            with pytest.raises(Parked) as parked:
                await admit(limiter, park_after_s=3.0)
            untils.append(parked.value.until_s)
        assert untils == sorted(untils) and len(set(untils)) == 5
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@virtually
async def test_after_a_429_nothing_leaves_in_the_pause_nor_then_a_herd() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, schedule):
        first = await admit(limiter)
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(40)]
        await asyncio.sleep(1.0)
        first.rate_limited(3.0, {})
        refused_at = loop.time()
        times = sorted(await asyncio.gather(*others))
    assert len(schedule.pauses) == 1
    assert not [each for each in times if refused_at < each < refused_at + 3.0]
    after = [each for each in times if each >= refused_at + 3.0]
    assert sum(each < refused_at + 4.0 for each in after) <= 10 + TEN_A_SECOND.dimensions[0].burst + 1


@virtually
async def test_many_429s_of_one_moment_are_one_pause() -> None:
    async with limiter_of() as (limiter, schedule):
        permits = [await admit(limiter) for _ in range(20)]
        for permit in permits:
            permit.rate_limited(2.0, {})
        await asyncio.sleep(1.0)
        assert len(schedule.pauses) == 1


@virtually
async def test_a_pause_heard_by_the_channel_voids_what_was_leased() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, schedule):
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(30)]
        await asyncio.sleep(0.5)
        heard_at = loop.time()
        schedule.paused_until, schedule.epoch = heard_at + 2.0, 2
        limiter.overhear_pause(2, 2.0)
        times = await asyncio.gather(*others)
    assert not [each for each in times if heard_at < each < heard_at + 2.0]


@virtually
async def test_a_pause_longer_than_a_waiter_s_patience_parks_it() -> None:
    async with limiter_of() as (limiter, _):
        others = [asyncio.create_task(admit(limiter, park_after_s=5.0)) for _ in range(30)]
        await asyncio.sleep(0.2)
        limiter.overhear_pause(2, 60.0)
        results = await asyncio.gather(*others, return_exceptions=True)
        parked = [each for each in results if isinstance(each, Parked)]
        assert len(parked) > 20
        now = asyncio.get_running_loop().time()
        assert all(each.until_s >= now + 59.0 for each in parked)


@virtually
async def test_a_stalled_loop_drops_its_slots_and_sends_no_burst() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with limiter_of() as (limiter, _):
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(40)]
        await asyncio.sleep(1.0)
        loop.skip(3.0)  # nothing ran in the meantime, as after SIGSTOP
        resumed_at = loop.time()
        times = await asyncio.gather(*others)
    assert limiter.settlements.stale > 0
    assert sum(resumed_at <= each < resumed_at + 0.2 for each in times) <= TEN_A_SECOND.dimensions[0].burst + 4


@virtually
async def test_a_lost_reply_loses_and_doubles_nothing() -> None:
    async with limiter_of() as (limiter, schedule):
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(40)]
        await asyncio.sleep(0.55)
        schedule.reply_is_lost = True
        times = await asyncio.gather(*others)
        seqs = [ask.seq for ask in schedule.asks]
    assert len(times) == 40
    assert seqs == sorted(set(seqs)), "a call was counted twice"
    assert sum(ask.settled for ask in schedule.asks) == 40 - limiter.settlements.settled


@virtually
async def test_tokens_are_settled_exactly_once() -> None:
    per_minute = plan(Limits(tpm=60_000, algorithm="sliding"))
    async with limiter_of(per_minute) as (limiter, schedule):

        async def one() -> None:
            permit = await admit(limiter, Cost(100, 400))
            permit.settle(Usage(100, 150))
            permit.settle(Usage(100, 150))
            permit.give_back()

        await asyncio.gather(*(one() for _ in range(30)))
        await asyncio.sleep(2.0)
        refunds = [refund for ask in schedule.asks for refund in ask.refunds]
        assert sum(refund.output_tokens for refund in refunds) == 30 * 250
        assert sum(refund.input_tokens for refund in refunds) == 0
        assert sum(ask.used_tokens for ask in schedule.asks) == 30 * 250
        assert sum(ask.reserved_tokens for ask in schedule.asks) == 30 * 500


@virtually
async def test_a_large_request_is_not_starved_by_small_ones() -> None:
    per_minute = plan(Limits(tpm=60_000, algorithm="sliding"))
    loop = asyncio.get_running_loop()
    async with limiter_of(per_minute) as (limiter, _):
        running = True

        async def small() -> None:
            while running:
                await sent_at(limiter, Cost(10, 40))

        others = [asyncio.create_task(small()) for _ in range(20)]
        await asyncio.sleep(1.0)
        asked_at = loop.time()
        await sent_at(limiter, Cost(10, 400))
        assert loop.time() - asked_at < 10.0
        running = False
        await asyncio.gather(*others)


@virtually
async def test_a_model_without_limits_waits_for_nobody_but_a_pause() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of(Plan()) as (limiter, schedule):
        await sent_at(limiter)
        permits = [await admit(limiter) for _ in range(500)]
        assert len(schedule.asks) <= 1
        permits[0].rate_limited(2.0, {})
        refused_at = loop.time()
        await admit(limiter)
        assert loop.time() >= refused_at + 2.0
        await asyncio.sleep(2.0)
        assert sum(ask.went_free for ask in schedule.asks) >= 500


@pytest.mark.parametrize("live", [1, 4])
@virtually
async def test_degraded_keeps_a_share_of_the_pace_for_a_bounded_time(live: int) -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of(degraded_for_s=20.0, live=live) as (limiter, schedule):
        await admit(limiter)
        schedule.is_away = True
        gone_at = loop.time()
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(400)]
        await asyncio.sleep(60.0)
        times = [task.result() for task in others if task.done()]
        pace = TEN_A_SECOND.dimensions[0].rate_per_s
        assert len(times) == pytest.approx(pace * 0.8 / live * 20, abs=3)
        assert max(times) <= gone_at + 21.0
        schedule.is_away = False
        await asyncio.gather(*others)


@pytest.mark.parametrize(
    ("reason", "slots", "expected"),
    [("done", [12.0, 13.5], 3.5), ("far", [], 2.0), ("fair", [], 2.0), ("calls", [], 0.0), ("done", [], 0.0)],
)
def test_a_grant_tells_how_far_ahead_the_schedule_was_sold(reason: str, slots: list[float], expected: float) -> None:
    assert Grant(now=10.0, wait_s=2.0, reason=reason, slots=slots).sold_ahead_s == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(rpm=600, algorithm="sliding"), 4.0),
        (Limits(tpm=60_000, algorithm="bucket"), 0.7),
        (Limits(rpm=600, tpm=60_000, algorithm="sliding"), 0.4),
    ],
)
@virtually
async def test_what_is_reserved_by_estimates_is_leased_less_far_ahead(limits: Limits, expected: float) -> None:
    async with limiter_of(plan(limits)) as (limiter, schedule):
        await sent_at(limiter, Cost(10, 10))
        assert schedule.asks[0].longest_horizon_s == expected


@virtually
async def test_its_share_begins_behind_what_the_others_have_leased_too() -> None:
    """They send it yet: with a share beside it, four processes sent 1.4 times the limit for two seconds."""
    async with limiter_of() as (limiter, schedule):
        loop = asyncio.get_running_loop()
        await sent_at(limiter)
        schedule.sells_to_others(until=loop.time() + 0.4)
        waiting = [asyncio.create_task(sent_at(limiter)) for _ in range(8)]
        await asyncio.sleep(0.05)
        slots = [instant for instant in schedule.sold if instant > loop.time()]
        assert slots and max(slots) - loop.time() > 0.3
        schedule.is_away = True
        while not limiter.is_away:
            await asyncio.sleep(0.01)
        lost_at = loop.time()
        times = sorted(await asyncio.gather(*waiting))
        of_its_own = [at for at in times if at > max(slots) + 0.01]
        assert of_its_own
        assert min(of_its_own) >= lost_at + 0.3


@pytest.mark.parametrize("when_away", ["degraded", "open"])
@virtually
async def test_calls_made_without_redis_are_counted_when_it_is_back(when_away: str) -> None:
    loop = asyncio.get_running_loop()
    per_minute = plan(Limits(tpm=60_000, algorithm="sliding"))
    async with limiter_of(per_minute, when_away=when_away) as (limiter, schedule):
        (await admit(limiter, Cost(10, 90))).settle(Usage(10, 90))
        await asyncio.sleep(10.0)
        schedule.is_away = True
        permits = []
        for _ in range(3):
            permits.append(await admit(limiter, Cost(10, 90)))
            sent_at = loop.time()
        permits[0].settle(Usage(10, 20))
        schedule.is_away = False
        said, sold = len(schedule.asks), len(schedule.sold)
        await asyncio.sleep(5.0)
        permits[1].settle(Usage(10, 190))
        await asyncio.sleep(5.0)
        asks = schedule.asks[said:]
        assert sum(ask.went_free for ask in asks) == 3
        refunds = [refund for ask in asks for refund in ask.refunds]
        # The call that had no answer is made again, and what it leased is given back.
        unused = len(schedule.sold) - sold
        assert sum(refund.input_tokens for refund in refunds) == (unused - 3) * 10
        assert sum(refund.output_tokens for refund in refunds) == unused * 90 - 20 - 190 - 90
        # In the bin in which it was sent, although all of it is told later.
        assert min(refund.bin for refund in refunds) <= sent_at // BIN_S


@virtually
async def test_a_share_without_redis_begins_behind_what_is_leased() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, schedule):
        others = [asyncio.create_task(sent_at(limiter)) for _ in range(60)]
        await asyncio.sleep(1.0)
        schedule.is_away = True
        gone_at = loop.time()
        leased = [slot for slot in schedule.sold if slot > gone_at]
        times = await asyncio.gather(*others)
    assert leased
    assert sum(gone_at < each <= leased[-1] for each in times) <= len(leased)


@virtually
async def test_what_calls_really_took_counts_for_a_minute() -> None:
    """Each takes more than was reserved, so the pace alone would let twice the limit through."""
    per_minute = plan(Limits(tpm=60_000, algorithm="sliding"))
    ledger, loop = Ledger(), asyncio.get_running_loop()
    async with limiter_of(per_minute) as (limiter, _):

        async def keep_asking() -> None:
            while loop.time() < 1_200.0:
                permit = await admit(limiter, Cost(100, 400))
                ledger.add([loop.time()], 1_000)
                await asyncio.sleep(0.5)
                permit.settle(Usage(100, 900))

        await asyncio.gather(*(keep_asking() for _ in range(20)))
    beyond_of_those_under_way = 20 * 500
    assert 55_000 < ledger.most_in_window(60.0) <= 60_000 + beyond_of_those_under_way
    assert sum(amount for _, amount in ledger.entries) > 0.9 * 3 * 60_000


@virtually
async def test_what_one_call_may_take_beyond_its_reservation_is_told() -> None:
    async with limiter_of(plan(Limits(tpm=60_000, algorithm="sliding"))) as (limiter, schedule):
        estimate = Cost(10, 90, 40, 1)
        await sent_at(limiter, estimate)
        assert schedule.asks[-1].beyond_tokens == 0
        for tokens in (10, 500):
            (await admit(limiter, Cost(10, 90))).settle(Usage(10, tokens))
        await sent_at(limiter, estimate)
        assert schedule.asks[-1].beyond_tokens == 2 * 500 - 90
        await sent_at(limiter, replace(estimate, most_output_tokens=600))
        assert schedule.asks[-1].beyond_tokens == 600 - 90


@virtually
async def test_closed_lets_nobody_go_and_open_everybody() -> None:
    async with limiter_of(when_away="closed") as (limiter, schedule):
        schedule.is_away = True
        waiting = asyncio.create_task(admit(limiter))
        await asyncio.sleep(30.0)
        assert not waiting.done()
        schedule.is_away = False
        await waiting
    async with limiter_of(when_away="open") as (limiter, schedule):
        schedule.is_away = True
        await asyncio.gather(*(admit(limiter) for _ in range(100)))


@virtually
async def test_closing_gives_back_slots_and_cancels_who_waits() -> None:
    async with limiter_of(replace(TEN_A_SECOND)) as (limiter, schedule):
        others = [asyncio.create_task(admit(limiter)) for _ in range(30)]
        await asyncio.sleep(0.3)
    results = await asyncio.gather(*others, return_exceptions=True)
    assert any(isinstance(each, asyncio.CancelledError) for each in results)
    assert schedule.asks[-1].leaves
    assert schedule.asks[-1].returned


def told(limit: int, remaining: int, reset: str, name: str = "requests") -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(limit),
        f"x-ratelimit-remaining-{name}": str(remaining),
        f"x-ratelimit-reset-{name}": reset,
    }


@virtually
async def test_a_429_without_retry_after_pauses_until_room_is_free() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, schedule):
        permit = await admit(limiter)
        permit.rate_limited(None, told(600, 0, "7.5s"))
        refused_at = loop.time()
        assert await sent_at(limiter) >= refused_at + 7.5
    assert [report.asked_s for report in schedule.pauses] == [7.5]


@virtually
async def test_a_second_429_only_ever_makes_the_pause_longer() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of() as (limiter, schedule):
        permits = [await admit(limiter) for _ in range(3)]
        refused_at = loop.time()
        for permit, asked_s in zip(permits, (5.0, 0.5, 8.0), strict=True):
            permit.rate_limited(asked_s, {})
            await asyncio.sleep(0.1)
        assert await sent_at(limiter) >= refused_at + 8.0
    # The shorter one told nothing new.
    assert [report.asked_s for report in schedule.pauses] == [5.0, 8.0]


@virtually
async def test_a_request_larger_than_a_learned_limit_takes_its_window() -> None:
    loop = asyncio.get_running_loop()
    wide = plan(Limits(tpm=600_000, algorithm="sliding"))
    schedule = PlainSchedule(wide)

    def learn(limits: Mapping[LearnedLimit, int]) -> None:
        schedule.plan = plan(Limits(tpm=limits["tpm"], algorithm="sliding"))
        limiter.replan(schedule.plan, schedule)

    limiter = Limiter(
        wide, schedule, options=LimiterOptions("p"), estimator=Estimator(), now=loop.time, on_learned=learn
    )
    first = await admit(limiter, Cost(10, 10))
    limiter.overhear_pause(2, 1.0)  # so that the others still wait
    large = asyncio.create_task(admit(limiter, Cost(10, 90_000)))
    small = asyncio.create_task(admit(limiter, Cost(10, 90)))
    await asyncio.sleep(0.01)
    schedule.learned = {"tpm": 60_000}
    first.observe(told(60_000, 59_000, "1s", "tokens"))
    assert (await large).cost.of("tokens") == 60_000
    (await small).settle(Usage())
    assert [header.limit for ask in schedule.asks for header in ask.headers] == [60_000]
    # A higher one is no news: the schedule decides when it counts.
    first.observe(told(90_000, 89_000, "1s", "tokens"))
    assert limiter.plan == schedule.plan == plan(Limits(tpm=60_000, algorithm="sliding"))
    await limiter.close()


@virtually
async def test_the_first_request_without_limits_is_alone_for_a_second() -> None:
    loop = asyncio.get_running_loop()
    async with limiter_of(Plan()) as (limiter, _):
        asked_at = loop.time()
        slow = asyncio.gather(*(admit(limiter) for _ in range(20)))
        await slow
        assert 0.9 < loop.time() - asked_at < 1.1
    async with limiter_of(Plan()) as (limiter, _):
        asked_at = loop.time()
        tasks = [asyncio.create_task(admit(limiter)) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert [task.done() for task in tasks] == [True] + [False] * 19
        tasks[0].result().settle(Usage())
        await asyncio.gather(*tasks)
        assert loop.time() - asked_at < 0.2


@virtually
async def test_of_one_odd_usage_a_window_counts() -> None:
    async with limiter_of(plan(Limits(tpm=60_000, input_tpm=50_000))) as (limiter, schedule):
        (await admit(limiter, Cost(10, 90))).settle(Usage(10**8, 10**20))
        await asyncio.sleep(1.0)
        (refund,) = (refund for ask in schedule.asks for refund in ask.refunds)
        assert (refund.input_tokens, refund.output_tokens) == (10 - 50_000, 90 - 10_000)
        assert sum(ask.used_tokens for ask in schedule.asks) == 60_000
    async with limiter_of(Plan()) as (limiter, schedule):
        (await admit(limiter, UNKNOWN)).settle(Usage(10**400, 5))
        await asyncio.sleep(3.0)
        assert sum(ask.used_tokens for ask in schedule.asks) == 10_000_005


@virtually
async def test_a_limit_that_is_not_believed_is_told_at_once_but_once() -> None:
    async with limiter_of(plan(Limits(rpm=60_000))) as (limiter, schedule):
        await sent_at(limiter)
        await asyncio.sleep(3.0)
        before = len(schedule.asks)
        for _ in range(100):
            (await admit(limiter)).observe(told(1, 0, "1m0s"))
            await asyncio.sleep(0.02)
        heard = [ask for ask in schedule.asks[before:] if ask.headers]
        assert heard
        assert len([ask for ask in heard if not ask.costs]) <= 2
        # Nobody goes free while the schedule has not answered to the first.
    async with limiter_of(Plan()) as (limiter, schedule):
        await sent_at(limiter)
        limiter.observe(told(1, 0, "1m0s"))
        asked_at = asyncio.get_running_loop().time()
        await sent_at(limiter)
        assert asyncio.get_running_loop().time() > asked_at
        assert [len(ask.headers) for ask in schedule.asks] == [0, 1]


@virtually
async def test_limits_that_another_process_was_told_are_taken_over() -> None:
    heard: list[Mapping[LearnedLimit, int]] = []
    schedule = PlainSchedule(TEN_A_SECOND)
    limiter = Limiter(
        TEN_A_SECOND,
        schedule,
        options=LimiterOptions("p"),
        estimator=Estimator(),
        now=asyncio.get_running_loop().time,
        on_learned=heard.append,
    )
    await sent_at(limiter)
    schedule.learned = {"rpm": 300}
    await asyncio.gather(*(sent_at(limiter) for _ in range(3)))
    assert heard == [{"rpm": 300}]
    await limiter.close()


@virtually
async def test_the_line_that_is_given_is_the_one_that_waits() -> None:
    queue: WaitQueue[Waiter] = WaitQueue({"heavy": 3.0})
    schedule = PlainSchedule(TEN_A_SECOND)
    limiter = Limiter(
        TEN_A_SECOND,
        schedule,
        options=LimiterOptions("p"),
        estimator=Estimator(),
        now=asyncio.get_running_loop().time,
        queue=queue,
    )
    order: list[str] = []

    async def one(tenant: str) -> None:
        await sent_at(limiter, tenant=tenant)
        order.append(tenant)

    await asyncio.gather(*(one(tenant) for _ in range(20) for tenant in ("light", "heavy")))
    assert order[:20].count("heavy") == pytest.approx(15, abs=1)
    await limiter.close()
