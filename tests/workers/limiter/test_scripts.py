"""acquire.lua and pause.lua in a real Redis, case by case, at times of our choosing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Redis

from config.catalog import Limits
from tasks.wire import redis_keys
from workers.limiter.cost import Cost
from workers.limiter.heard.headers import RateHeader
from workers.limiter.leasing.settlements import Refund
from workers.limiter.rate import BIN_S, plan
from workers.limiter.shared.schedule import Ask, Grant, LimiterName, PauseReport, RedisSchedule
from workers.limiter.view import look

from .ledger import Ledger

FAST = Limits(rpm=60_000, algorithm="sliding")


def schedule(client: Redis, limits: Limits, *, now: float, **options: Any) -> RedisSchedule:
    return RedisSchedule(client, LimiterName("p", "m", "k"), plan(limits), fixed_now=str(now), **options)


def ask(process: str, seq: int, count: int, **fields: Any) -> Ask:
    return Ask(process=process, seq=seq, costs=[Cost()] * count, **fields)


async def test_a_cold_start_has_one_permit(client: Redis) -> None:
    limits = Limits(rpm=1_200, algorithm="sliding")
    grant = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 50, backlog=50))
    gap_s = 1 / plan(limits).dimensions[0].rate_per_s
    assert grant.slots[0] == pytest.approx(1_000.0)
    assert all(later - earlier > gap_s - 1e-5 for earlier, later in pairwise(grant.slots))


async def test_a_lost_state_begins_behind_all_that_may_be_leased(client: Redis) -> None:
    limits = Limits(rpm=1_200)
    deaf = Ask(process="a", seq=7, epoch=3, backlog=9, costs=[Cost()] * 9, longest_horizon_s=0.5)
    grant = await schedule(client, limits, now=1_000.0).acquire(deaf)
    assert (grant.slots, grant.epoch) == ([], 3)
    assert grant.wait_s == pytest.approx(4.0, abs=BIN_S)
    # A key's first limiter that was ever used must not wait.
    fresh = await schedule(client, limits, now=1_000.0, key_prefix="fresh:").acquire(replace(deaf, epoch=0))
    assert fresh.slots[0] == 1_000.0


async def test_the_day_s_allowance_stops_at_its_number(client: Redis) -> None:
    limits = Limits(rpm=60_000, rpd=10)
    first = await schedule(client, limits, now=86_400.0 * 100 + 10).acquire(ask("a", 1, 50))
    assert (len(first.slots), first.reason) == (10, "day")
    assert first.wait_s == pytest.approx(86_390.0)
    next_day = await schedule(client, limits, now=86_400.0 * 101 + 1).acquire(ask("a", 2, 5))
    assert len(next_day.slots) == 5


async def test_a_dead_process_s_calls_come_back_with_its_lease(client: Redis) -> None:
    limits = Limits(max_in_flight=10)
    dying = ask("dead", 1, 20)
    assert len((await schedule(client, limits, now=1_000.0).acquire(dying)).slots) == 10
    other = replace(dying, process="alive")
    assert not (await schedule(client, limits, now=1_011.0).acquire(other)).slots
    assert len((await schedule(client, limits, now=1_012.5).acquire(replace(other, seq=2))).slots) == 10


async def test_processes_that_wait_share_evenly(client: Redis) -> None:
    limits, got, asked = Limits(rpm=6_000, algorithm="sliding"), Counter[str](), Counter[str]()
    now = 1_000.0
    for step in range(400):
        now += 0.05
        # `greedy` asks three times as often.
        for process in ("greedy", *(("modest",) if step % 3 == 0 else ())):
            asked[process] += 1
            call = ask(process, asked[process], 256, backlog=500, epoch=1 if step else 0)
            got[process] += len((await schedule(client, limits, now=now).acquire(call)).slots)
    assert got["greedy"] / got["modest"] == pytest.approx(1.0, abs=0.1)


async def test_the_organisation_s_limit_stands_above_the_keys(client: Redis) -> None:
    terms = plan(FAST, organisation=Limits(rpm=600, algorithm="sliding"), keys=3)
    ledger = Ledger()
    for key in ("k1", "k2", "k3"):
        of_key = RedisSchedule(client, LimiterName("p", "m", key), terms, fixed_now="1000")
        ledger.add((await of_key.acquire(ask("a", 1, 99, backlog=99))).slots)
    (pace,) = (each for each in terms.dimensions if each.shared_by)
    assert len(ledger.entries) > 3
    assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=pace.burst) <= 0


async def test_the_end_of_a_schedule_can_be_given_back(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    first = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 20, backlog=20))
    leaving = Ask(process="a", seq=2, leaves=True, returned=first.slots[5:])
    await schedule(client, limits, now=1_000.0).acquire(leaving)
    other = await schedule(client, limits, now=1_000.0).acquire(ask("b", 1, 3))
    assert other.slots == pytest.approx(first.slots[5:8], abs=1e-4)


async def test_a_slot_from_the_middle_of_a_schedule_is_not_sold_again(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    first = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 20, backlog=20))
    await schedule(client, limits, now=1_000.0).acquire(Ask(process="a", seq=2, epoch=1, returned=[first.slots[9]]))
    other = await schedule(client, limits, now=1_000.0).acquire(ask("b", 1, 1))
    assert other.slots[0] > first.slots[-1] + 0.05


async def test_an_unknown_limit_is_cut_by_a_429_and_recovers(client: Redis) -> None:
    free = Limits()
    now = 1_000.0
    for seq in range(1, 31):
        await schedule(client, free, now=now + seq).acquire(Ask(process="a", seq=seq, went_free=10, epoch=int(seq > 1)))
    now += 31
    await schedule(client, free, now=now).pause(PauseReport(epoch=1, asked_s=2.0, alone_s=60.0))
    capped = await schedule(client, free, now=now + 2).acquire(ask("a", 40, 256, backlog=500))
    assert capped.is_capped
    gap_s = capped.slots[1] - capped.slots[0]
    assert 1 / gap_s == pytest.approx(5.0, rel=0.1)
    later = await schedule(client, free, now=now + 22).acquire(ask("a", 41, 256, backlog=500))
    assert 1 / (later.slots[1] - later.slots[0]) == pytest.approx(10.0, rel=0.15)
    still = await schedule(client, free, now=now + 32).acquire(ask("a", 42, 256, backlog=500))
    assert 1 / (still.slots[1] - still.slots[0]) == pytest.approx(10.0 + 5.0 / 8, rel=0.15)
    forgotten = await schedule(client, free, now=now + 2 + 80).acquire(ask("a", 43, 1))
    assert not forgotten.is_capped


async def test_after_a_429_on_a_quiet_key_the_pace_doubles_each_second(client: Redis) -> None:
    free = Limits()
    await schedule(client, free, now=1_000.0).acquire(Ask(process="a", seq=1, went_free=1))
    await paused(client, free, now=1_001.0, epoch=1, asked_s=2.0)
    sent: list[float] = []
    seq, now = 2, 1_003.0
    while len(sent) < 50:
        left = 50 - len(sent)
        grant = await schedule(client, free, now=now).acquire(ask("a", seq, left, backlog=left, epoch=2))
        sent += grant.slots
        seq, now = seq + 1, now + 0.5
        assert now < 1_020.0, "a quiet key that is slow for long"
    assert max(sent) < 1_003.0 + 8.0
    assert min(gaps(replace(grant, slots=sent))) > 0.005


async def test_a_429_at_the_found_pace_is_followed_by_little_less(client: Redis) -> None:
    """By what was sent in the last minute, where the provider's wait tells of windows; else by the pace in force."""
    for asked_s in (0.2, 30.0):
        await client.flushall()
        free, now, epoch = Limits(), 1_000.0, 1
        await schedule(client, free, now=now).acquire(Ask(process="a", seq=1, went_free=600))
        epoch = (await paused(client, free, now=now, epoch=epoch, asked_s=30.0)).epoch
        for seq in range(2, 1_000):
            now += 0.1
            if now > 1_030.0:
                await schedule(client, free, now=now).acquire(ask("a", seq, 1, epoch=epoch))
        epoch = (await paused(client, free, now=now, epoch=epoch, asked_s=asked_s)).epoch
        grant = await schedule(client, free, now=now + asked_s + 5.0).acquire(
            ask("a", 1_000, 20, backlog=20, epoch=epoch)
        )
        assert 7.0 < pace_of(grant) < 10.0


async def test_a_window_s_limit_is_what_passed_before_a_long_pause(client: Redis) -> None:
    """Other processes tell what they have sent, and what of it was refused, while the pause lasts."""
    free = Limits()
    for process in ("a", "b"):
        await schedule(client, free, now=1_000.0).acquire(Ask(process=process, seq=1, went_free=20))
    epoch = (await paused(client, free, now=1_000.5, epoch=1, asked_s=40.0)).epoch
    await schedule(client, free, now=1_002.0).acquire(Ask(process="a", seq=2, went_free=90, unsent=10, epoch=epoch))
    await schedule(client, free, now=1_003.0).acquire(Ask(process="b", seq=2, unsent=0, epoch=epoch))
    grant = await schedule(client, free, now=1_040.5).acquire(ask("a", 3, 20, backlog=20, epoch=epoch))
    assert pace_of(grant) == pytest.approx(0.9 * 120 / 60, rel=0.05)


async def test_a_window_full_at_the_end_of_its_pause_lowers_no_count(client: Redis) -> None:
    free = Limits()
    await schedule(client, free, now=1_000.0).acquire(Ask(process="a", seq=1, went_free=600))
    epoch = (await paused(client, free, now=1_000.5, epoch=1, asked_s=40.0)).epoch
    await schedule(client, free, now=1_040.5).acquire(ask("a", 2, 9, backlog=9, epoch=epoch))
    epoch = (await paused(client, free, now=1_041.0, epoch=epoch, asked_s=0.5)).epoch
    grant = await schedule(client, free, now=1_041.5).acquire(ask("a", 3, 20, backlog=20, epoch=epoch))
    assert pace_of(grant) == pytest.approx(9.0, rel=0.05)


@pytest.mark.parametrize(("passed", "is_window"), [(0, True), (10, False)])
async def test_refusals_in_a_row_without_a_wait_tell_of_a_window(client: Redis, passed: int, is_window: bool) -> None:
    """A bucket would have had room after the first pauses."""
    free, now, epoch = Limits(), 1_000.0, 1
    await schedule(client, free, now=now).acquire(Ask(process="a", seq=1, went_free=60))
    for seq in (2, 3, 4):
        now += 0.5
        pause = await paused(client, free, now=now, epoch=epoch, asked_s=None)
        assert pause.until - now == pytest.approx(2.0 ** (seq - 2) if is_window else 1.0)
        epoch, now = pause.epoch, pause.until + 3.0
        await schedule(client, free, now=now).acquire(Ask(process="a", seq=seq, went_free=passed, epoch=epoch))
    grant = await schedule(client, free, now=now).acquire(ask("a", 5, 20, backlog=20, epoch=epoch))
    first_at = grant.slots[0] if grant.slots else now + grant.wait_s
    assert (first_at > 1_060.0) is is_window
    if is_window:
        later = await schedule(client, free, now=1_063.0).acquire(ask("a", 6, 20, backlog=20, epoch=epoch))
        assert 0.85 < pace_of(later) < 1.05


async def test_a_ceiling_found_twice_is_probed_by_calls_not_seconds(client: Redis) -> None:
    free, now, epoch, reached = Limits(), 1_000.0, 1, []
    await schedule(client, free, now=now).acquire(Ask(process="a", seq=1, went_free=60))
    epoch = (await paused(client, free, now=now, epoch=epoch, asked_s=40.0)).epoch
    seq, now = 2, now + 40.0
    for _ in range(3):
        calls, gap_s = 0, math.inf
        while gap_s > 1.0 and calls < 2_000:  # the provider's limit
            grant = await schedule(client, free, now=now).acquire(ask("a", seq, 1, backlog=9, epoch=epoch))
            gap_s = grant.slots[0] - now if calls else math.inf
            seq, now, calls = seq + 1, grant.slots[0], calls + 1
        reached.append(calls)
        epoch = (await paused(client, free, now=now, epoch=epoch, asked_s=1.0)).epoch
        now += 1.0
    assert 60 < reached[0] < 200
    assert min(reached[1:]) > 250
    # A limit that was raised is found all the same.
    for later in range(seq, seq + 2_500):
        grant = await schedule(client, free, now=now).acquire(ask("a", later, 1, backlog=9, epoch=epoch))
        gap_s, now = grant.slots[0] - now, grant.slots[0]
    assert gap_s < 0.5


async def test_headers_only_slow_down_where_others_have_used_the_key(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="fixed")
    told: Any = {"learned": {"rpm": 600}}
    await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 5))
    own = RateHeader("requests", 600, 595, 50.0)
    calm = await schedule(client, limits, now=1_010.0, **told).acquire(
        Ask(process="a", seq=2, costs=[Cost()], headers=[own], epoch=1)
    )
    assert calm.slots[0] == pytest.approx(1_010.0)
    foreign = RateHeader("requests", 600, 50, 40.0)
    slowed = await schedule(client, limits, now=1_020.0, **told).acquire(
        Ask(process="a", seq=3, costs=[Cost()], headers=[foreign], epoch=1)
    )
    assert not slowed.slots
    assert slowed.wait_s == pytest.approx(40 - 50 / plan(limits).dimensions[0].rate_per_s, abs=0.5)


async def test_somebody_else_s_use_takes_its_share_of_the_pace_once(client: Redis) -> None:
    limits: Any = Limits(rpm=600, algorithm="sliding")
    rate, told = plan(limits).dimensions[0].rate_per_s, {"rpm": 600}

    async def wait_after(seq: int, used: int, now: float) -> float:
        header = RateHeader("requests", 600, 600 - used, 60.0)
        call = Ask(process="a", seq=seq, headers=[header], costs=[Cost()], epoch=int(seq > 1), longest_horizon_s=0.1)
        grant = await schedule(client, limits, now=now, learned=told).acquire(call)
        return grant.slots[0] - now if grant.slots else grant.wait_s

    assert await wait_after(1, 100, 1_000.0) == pytest.approx(100 / rate, abs=0.7)
    assert await wait_after(2, 100, 1_002.0) == pytest.approx(100 / rate - 2, abs=0.7)
    assert await wait_after(3, 130, 1_002.0) == pytest.approx(130 / rate - 2, abs=0.7)


async def test_after_a_lost_state_our_own_calls_are_nobody_else_s(client: Redis) -> None:
    limits, told = Limits(rpm=600, algorithm="sliding"), {"rpm": 600}
    used = RateHeader("requests", 600, 100, 60.0)

    async def first_slot(seq: int, now: float) -> float:
        call = Ask(process="a", seq=seq, headers=[used], costs=[Cost()], epoch=3)
        grant = await schedule(client, limits, now=now, learned=told).acquire(call)
        return grant.slots[0] if grant.slots else now + grant.wait_s

    assert await first_slot(1, 1_000.0) == pytest.approx(1_004.0, abs=BIN_S)
    assert await first_slot(2, 1_123.0) == 1_123.0
    assert await first_slot(3, 1_125.0) > 1_170.0


def gaps(grant: Grant) -> list[float]:
    return [later - earlier for earlier, later in pairwise(grant.slots)]


def pace_of(grant: Grant) -> float:
    """Slots a second."""
    return 1 / (grant.slots[-1] - grant.slots[-2])


# ---- what answers have told


async def test_a_limit_that_one_process_was_told_binds_the_others(client: Redis) -> None:
    unknown = Limits()
    header = RateHeader("requests", 600, 599, 0.1)
    await schedule(client, unknown, now=1_000.0).acquire(Ask(process="a", seq=1, headers=[header]))
    refused = await schedule(client, unknown, now=1_000.1).acquire(ask("b", 1, 5))
    assert (refused.reason, refused.wait_s, refused.slots) == ("limits", 0.0, [])
    assert refused.learned == {"rpm": 600}
    knows = schedule(client, Limits(rpm=600), now=1_000.2, learned=refused.learned)
    granted = await knows.acquire(ask("b", 2, 5))
    assert gaps(granted) == pytest.approx([1 / plan(Limits(rpm=600)).dimensions[0].rate_per_s] * 4, abs=1e-5)


async def test_limits_of_input_and_output_are_learned_apart(client: Redis) -> None:
    headers = [RateHeader("input", 30_000, 10, 50.0), RateHeader("output", 8_000, 10, 50.0)]
    learned = {"input_tpm": 30_000, "output_tpm": 8_000}
    first = await schedule(client, Limits(), now=998.0).acquire(Ask(process="a", seq=1, headers=headers))
    assert first.learned == learned
    known = schedule(client, Limits(input_tpm=30_000, output_tpm=8_000), now=999.0, learned=learned)
    grant = await known.acquire(ask("a", 2, 1, epoch=1, headers=headers))
    assert len(grant.slots) == 1, "what was used of it may well be our own: nobody counts it"


async def test_the_lowest_limit_that_was_told_counts_for_ten_minutes(client: Redis) -> None:
    async def told(seq: int, limit: int, now: float) -> Any:
        header = RateHeader("tokens", limit, limit, 0.0)
        call = Ask(process="a", seq=seq, headers=[header], epoch=int(seq > 1))
        return (await schedule(client, Limits(), now=now).acquire(call)).learned

    assert await told(1, 30_000, 998.0) == {"tpm": 30_000}
    assert await told(2, 30_000, 1_000.0) == {"tpm": 30_000}
    assert await told(3, 90_000, 1_599.0) == {"tpm": 30_000}
    assert await told(4, 30_000, 1_600.0) == {"tpm": 30_000}
    assert await told(5, 90_000, 2_199.0) == {"tpm": 30_000}
    assert await told(6, 90_000, 2_201.0) == {"tpm": 90_000}
    assert await told(7, 50_000, 2_202.0) == {"tpm": 50_000}


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "told"])
async def test_a_limit_far_below_the_known_counts_when_told_twice(client: Redis, stated: bool) -> None:
    limits = Limits(rpm=600) if stated else Limits()

    async def told(seq: int, limit: int, now: float) -> Any:
        call = Ask(process="a", seq=seq, headers=[RateHeader("requests", limit, limit, 0.0)], epoch=int(seq > 1))
        return (await schedule(client, limits, now=now).acquire(call)).learned

    assert await told(1, 600, 1_000.0) == {"rpm": 600}
    assert await told(2, 1, 1_010.0) == {"rpm": 600}
    assert await told(3, 1, 1_010.1) == {"rpm": 600}  # of the same moment: the same oddity
    assert await told(4, 600, 1_011.0) == {"rpm": 600}
    assert await told(5, 2, 1_020.0) == {"rpm": 2}  # the higher of the two
    assert await told(6, 600, 1_021.0) == {"rpm": 2}


async def test_a_limit_below_what_was_just_used_is_not_believed_yet(client: Redis) -> None:
    used = Ask(process="a", seq=1, went_free=100, refunds=[Refund(0, -6_000, -4_000)], settled=100)
    await schedule(client, Limits(), now=1_000.0).acquire(used)
    odd = [RateHeader("requests", 1, 0, 60.0), RateHeader("tokens", 1, 0, 60.0)]
    grant = await schedule(client, Limits(), now=1_001.0).acquire(Ask(process="a", seq=2, headers=odd, epoch=1))
    assert grant.learned == {}


@pytest.mark.parametrize("field", ["requests", "tokens"])
async def test_the_first_told_limit_counts_until_an_answer_contradicts(client: Redis, field: Any) -> None:
    seq = 0

    async def told(limit: int | None, now: float, **fields: Any) -> Any:
        nonlocal seq
        seq += 1
        headers = [RateHeader(field, limit, 0, 60.0)] if limit else []
        call = Ask(process="a", seq=seq, headers=headers, epoch=int(seq > 1), **fields)
        return (await schedule(client, Limits(), now=now).acquire(call)).learned

    name = "rpm" if field == "requests" else "tpm"
    assert await told(1, 1_000.0) == {name: 1}
    assert await told(600, 1_002.0) == {name: 600}  # a higher one, by the next answer
    await client.flushall()
    assert await told(1, 1_000.0) == {name: 1}
    assert await told(None, 1_100.0) == {name: 1}  # nobody has called: nobody contradicts
    assert await told(None, 1_101.0, settled=1) == {}
    assert await told(1, 1_200.0) == {name: 1}
    assert await told(1, 1_201.0) == {name: 1}
    assert await told(None, 1_300.0, settled=1) == {name: 1}


async def test_a_limit_of_a_day_that_is_not_stated_is_told_twice(client: Redis) -> None:
    async def told(seq: int, now: float) -> Any:
        call = Ask(process="a", seq=seq, headers=[RateHeader("requests", 600, 0, 86_000.0)], epoch=int(seq > 1))
        return (await schedule(client, Limits(), now=now).acquire(call)).learned

    assert await told(1, 86_400.0 * 100) == {}
    assert await told(2, 86_400.0 * 100 + 2) == {"rpd": 600}


async def test_one_odd_remaining_does_not_end_the_day(client: Redis) -> None:
    limits, begins = Limits(rpm=600, rpd=200, algorithm="fixed"), 86_400.0 * 100

    async def acquire(seq: int, now: float, *headers: RateHeader) -> Grant:
        call = Ask(process="a", seq=seq, headers=headers, costs=[Cost()], epoch=int(seq > 1))
        return await schedule(client, limits, now=now, learned={"rpd": 200}).acquire(call)

    usual, odd = RateHeader("requests", 200, 190, 64_800.0), RateHeader("requests", 200, 0, 64_800.0)
    assert (await acquire(1, begins, usual)).slots
    assert (await acquire(2, begins + 10, odd)).slots
    assert (await acquire(3, begins + 20, usual)).slots
    await acquire(4, begins + 30, odd)
    assert (await acquire(5, begins + 40, odd)).reason == "day"


@pytest.mark.parametrize("limits", [Limits(tpm=60_000, algorithm=each) for each in ("bucket", "sliding")])
@pytest.mark.parametrize("above", [False, True], ids=["own", "organisation"])
async def test_one_odd_usage_takes_a_window_at_most(client: Redis, limits: Limits, above: bool) -> None:
    terms = plan(Limits(), organisation=limits, keys=2) if above else plan(limits)
    odd = Ask(process="a", seq=1, refunds=[Refund(int(1_000 / BIN_S), output_tokens=-100_000_000)], settled=1)
    name = LimiterName("p", "m", "k")
    await RedisSchedule(client, name, terms, fixed_now="1000.0").acquire(odd)
    for now, seq in ((1_000.0, 2), (1_060.5, 3)):
        call = Ask(process="a", seq=seq, epoch=1, costs=[Cost(100, 100)])
        grant = await RedisSchedule(client, name, terms, fixed_now=str(now)).acquire(call)
        assert (grant.wait_s or grant.slots[0] - now) <= 61.0 - (now - 1_000.0)


async def test_use_of_the_day_elsewhere_does_not_slow_the_minute(client: Redis) -> None:
    limits, told = Limits(rpm=600, rpd=200, algorithm="fixed"), {"rpd": 200}
    header = RateHeader("requests", 200, 50, 64_800.0)
    begins = 86_400.0 * 100
    await schedule(client, limits, now=begins, learned=told).acquire(Ask(process="a", seq=1, headers=[header]))
    first = await schedule(client, limits, now=begins, learned=told).acquire(
        Ask(process="a", seq=2, headers=[header], costs=[Cost()] * 3, epoch=1)
    )
    assert first.slots[0] == pytest.approx(begins)
    rest = await schedule(client, limits, now=begins + 60, learned=told).acquire(ask("a", 3, 100, epoch=1))
    more = await schedule(client, limits, now=begins + 120, learned=told).acquire(ask("a", 4, 100, epoch=1))
    assert len(first.slots) + len(rest.slots) + len(more.slots) == 50
    assert more.reason == "day"


async def test_processes_with_other_catalogues_stay_under_the_highest(client: Redis) -> None:
    low, high = Limits(rpm=600, algorithm="sliding"), Limits(rpm=1_200, algorithm="sliding")
    ledger = Ledger()
    for step in range(100):
        for process, limits in (("old", low), ("new", high)):
            call = ask(process, step + 1, 30, backlog=30, epoch=int(step > 0))
            ledger.add((await schedule(client, limits, now=1_000.0 + step / 5).acquire(call)).slots)
    (pace,) = plan(high).dimensions
    assert len(ledger.entries) > 200
    assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=pace.burst) <= 0


# ---- the organisation's limits


def of_organisation(client: Redis, key: str, limits: Limits, above: Limits, *, now: float) -> RedisSchedule:
    terms = plan(limits, organisation=above, keys=2)
    return RedisSchedule(client, LimiterName("p", "m", key), terms, fixed_now=str(now))


async def test_between_the_slots_of_one_key_another_finds_its_own(client: Redis) -> None:
    of_key, above = Limits(rpm=600, algorithm="sliding"), Limits(rpm=1_200, algorithm="sliding")
    ledger, ends = Ledger(), []
    for key in ("k1", "k2"):
        grant = await of_organisation(client, key, of_key, above, now=1_000.0).acquire(ask("a", 1, 30, backlog=30))
        ledger.add(grant.slots)
        ends.append(grant.slots[-1])
        assert len(grant.slots) == 30
    (pace,) = plan(above).dimensions
    assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=1) <= 0
    # One after the other, the second would end after six seconds.
    assert max(ends) < 1_003.5


async def test_a_lost_calendar_begins_behind_what_may_be_out_too(client: Redis) -> None:
    above = Limits(rpm=1_200, algorithm="sliding")
    knows_an_epoch = Ask(process="a", seq=7, epoch=3, costs=[Cost()], longest_horizon_s=4.0)
    grant = await of_organisation(client, "k1", Limits(), above, now=1_000.0).acquire(knows_an_epoch)
    assert not grant.slots
    assert grant.wait_s >= 4.0


async def test_an_organisation_s_slot_can_be_given_back_in_the_middle(client: Redis) -> None:
    above = Limits(rpm=600, algorithm="sliding")
    first = await of_organisation(client, "k1", FAST, above, now=1_000.0).acquire(ask("a", 1, 10, backlog=10))
    back = Ask(process="a", seq=2, epoch=1, returned=[first.slots[4]])
    await of_organisation(client, "k1", FAST, above, now=1_000.0).acquire(back)
    other = await of_organisation(client, "k2", FAST, above, now=1_000.0).acquire(ask("b", 1, 2))
    assert other.slots[0] == pytest.approx(first.slots[4], abs=1e-5)
    assert other.slots[1] > first.slots[9]


@pytest.mark.parametrize("refund", [0, 2_400, -2_400])
async def test_an_organisation_s_tokens_are_settled(client: Redis, refund: int) -> None:
    above = Limits(tpm=60_000, algorithm="sliding")

    async def sold(key: str, call: Ask) -> int:
        return len((await of_organisation(client, key, Limits(), above, now=1_000.0).acquire(call)).slots)

    first = Ask(process="a", seq=1, costs=[Cost(100, 1_400)] * 2, longest_horizon_s=60.0)
    assert await sold("k1", first) == 2
    await sold("k1", Ask(process="a", seq=2, epoch=1, refunds=[Refund(0, output_tokens=refund)]))
    rest = Ask(process="b", seq=1, costs=[Cost(0, 300)] * 200, longest_horizon_s=10.0)
    horizon_s = 32 * 300 / plan(above).dimensions[0].rate_per_s
    expected = (horizon_s * plan(above).dimensions[0].rate_per_s - 3_000 + refund) / 300
    assert await sold("k2", rest) == pytest.approx(expected, abs=5)


async def calendar(client: Redis) -> dict[str, float]:
    fields: dict[Any, Any] = await client.hgetall("{rl:p:m}:organisation")
    return {name.decode(): float(sold) for name, sold in fields.items() if re.fullmatch(rb"[a-z]+:\d+", name)}


async def test_an_organisation_s_requests_and_tokens_share_instants(client: Redis) -> None:
    above = Limits(rpm=600, tpm=60_000, algorithm="sliding")
    requests, _ = (each for each in plan(Limits(), organisation=above).dimensions)
    call = Ask(process="a", seq=1, costs=[Cost(0, 900)] * 4, longest_horizon_s=60.0)
    grant = await of_organisation(client, "k1", Limits(), above, now=1_000.0).acquire(call)
    bins = {name for name in await calendar(client) if name.startswith("requests:")}
    assert len(grant.slots) == 4
    assert bins == {f"requests:{round(slot * requests.rate_per_s)}" for slot in grant.slots}


async def test_a_crumb_before_full_bins_is_left_to_those_it_suffices(client: Redis) -> None:
    above = Limits(tpm=60_000, algorithm="sliding")
    (tokens,) = plan(Limits(), organisation=above).dimensions

    async def buys(key: str, amount: int) -> Grant:
        call = Ask(process="a", seq=1, costs=[Cost(0, amount)], longest_horizon_s=60.0)
        return await of_organisation(client, key, Limits(), above, now=1_000.0).acquire(call)

    await buys("k1", int(3 * tokens.burst))
    await of_organisation(client, "k1", Limits(), above, now=1_000.0).acquire(
        Ask(process="a", seq=2, epoch=1, refunds=[Refund(0, output_tokens=30)])
    )
    before = await calendar(client)
    assert (await buys("k2", 100)).slots[0] > 1_001.0
    assert {name: sold for name, sold in (await calendar(client)).items() if name in before} == before
    assert (await buys("k3", 30)).slots[0] == 1_000.0


async def test_bins_of_a_limit_that_was_changed_are_numbered_anew(client: Redis) -> None:
    """Their numbers mean other times then. A settlement frees bins up to the last one, which would be decades ahead."""
    now = 1_790_000_000.0
    for seq, algorithm in enumerate(("bucket", "sliding"), start=1):
        above = Limits.model_validate({"tpm": 60_000, "algorithm": algorithm})
        call = Ask(process="a", seq=seq, epoch=seq - 1, costs=[Cost(0, 500)] * 4, longest_horizon_s=60.0)
        await of_organisation(client, "k1", Limits(), above, now=now).acquire(call)
    settled = Ask(process="a", seq=3, epoch=1, refunds=[Refund(0, output_tokens=50_000)])
    await of_organisation(client, "k1", Limits(), above, now=now).acquire(settled)
    (tokens,) = plan(Limits(), organisation=above).dimensions
    width_s = tokens.burst / 2 / tokens.rate_per_s
    bins = [int(name.partition(":")[2]) for name in await calendar(client)]
    assert bins
    assert all(now - 1 <= bin_ * width_s < now + 60 for bin_ in bins)


async def test_bins_that_have_passed_are_forgotten(client: Redis) -> None:
    above = Limits(rpm=600, tpm=60_000, algorithm="sliding")
    seen: set[str] = set()
    for seq, now in enumerate((1_000.0, 1_100.0, 1_200.0), start=1):
        call = Ask(process="a", seq=seq, epoch=seq - 1, costs=[Cost(0, 100)] * 9)
        await of_organisation(client, "k1", Limits(), above, now=now).acquire(call)
        bins = set(await calendar(client))
        assert len(bins) > 9
        assert not bins & seen
        seen |= bins


async def test_of_calls_without_a_slot_a_moment_counts_for_the_pace(client: Redis) -> None:
    limits = Limits(rpm=600, tpm=60_000, algorithm="sliding")
    requests = plan(limits).dimensions[0]
    away = Ask(process="a", seq=1, went_free=90, refunds=[Refund(bin_at(970.0), 0, -30_000)], costs=[Cost(0, 10)] * 4)
    grant = await schedule(client, limits, now=1_000.0).acquire(away)
    assert grant.slots[0] == pytest.approx(1_000.3)
    assert await windows(client) == {f"tokens:{bin_at(970.0)}": 30_000} | {
        f"tokens:{bin_at(slot)}": 10 * sum(bin_at(each) == bin_at(slot) for each in grant.slots) for slot in grant.slots
    }
    few = replace(away, process="b", went_free=2, refunds=[], costs=[Cost(0, 10)])
    assert (await schedule(client, limits, now=1_000.0).acquire(few)).slots[0] == pytest.approx(
        grant.slots[-1] + 3 / requests.rate_per_s, abs=1e-4
    )


# ---- what the last minute took

MINUTE = Limits(tpm=60_000, algorithm="sliding")
SPAN_S = plan(MINUTE).dimensions[0].span_s


def bin_at(instant: float) -> int:
    return int(instant // BIN_S)


class Buyer:
    """One process that asks for a request at a time, however far its slot is."""

    def __init__(
        self, client: Redis, limits: Limits = MINUTE, *, epoch: int = 0, key: str = "k", **options: Any
    ) -> None:
        self.client = client
        self.plan = plan(limits, **options)
        self.key = key
        self.epoch = epoch
        self.seq = 0

    async def says(self, now: float, **fields: Any) -> Grant:
        self.seq += 1
        of_key = RedisSchedule(self.client, LimiterName("p", "m", self.key), self.plan, fixed_now=str(now))
        asked = Ask(process=self.key, seq=self.seq, epoch=self.epoch, longest_horizon_s=300.0, **fields)
        grant = await of_key.acquire(asked)
        self.epoch = grant.epoch
        return grant

    async def buys(self, now: float, *amounts: int) -> Sequence[float]:
        return (await self.says(now, costs=[Cost(0, amount) for amount in amounts])).slots

    async def settles(self, now: float, instant: float, back: int) -> None:
        await self.says(now, refunds=[Refund(bin_at(instant), output_tokens=back)])


KEYS = redis_keys.limiter("p", "m", "k")


async def windows(client: Redis, key: str = KEYS.window) -> dict[str, float]:
    fields: dict[Any, Any] = await client.hgetall(key)
    return {field.decode(): float(charged) for field, charged in fields.items()}


def test_the_windows_keys_say_how_long_a_bin_lasts() -> None:
    """Processes that count by other bins, of another version, must not read these."""
    assert KEYS.window.endswith(f":window:{BIN_S * 1000:.0f}")
    assert KEYS.organisation_window.endswith(f":window:{BIN_S * 1000:.0f}")


async def test_bins_numbered_by_another_width_are_thrown_away(client: Redis) -> None:
    """By ours they lie decades ahead, and Redis would stand still while a script walked there."""
    far = int(2 * 1_000.0 / BIN_S) + 1_000_000
    await client.hset(KEYS.window, f"tokens:{far}", 60_000)
    (slot,) = (
        await schedule(client, MINUTE, now=1_000.0).acquire(
            Ask(process="a", seq=1, costs=[Cost(100, 100)], longest_horizon_s=60.0)
        )
    ).slots
    assert slot < 1_002.0
    assert f"tokens:{far}" not in await windows(client)


async def test_room_is_kept_for_one_call_beyond_its_reservation(client: Redis) -> None:
    async def first_slot(beyond: int, **limits: int) -> float:
        await client.flushall()
        buyer = Buyer(client, Limits(**limits, algorithm="sliding"))
        await buyer.says(1_000.0, costs=[Cost(10, 90)])
        await buyer.says(1_001.0, refunds=[Refund(bin_at(1_000.0), -49_990, -49_910)])
        grant = await buyer.says(1_060.0, costs=[Cost(9_000, 9_000)], beyond_tokens=beyond)
        return grant.slots[0]

    leaves = pytest.approx(1_000.0 + BIN_S + SPAN_S)
    assert await first_slot(2_000, tpm=120_000) < 1_060.3
    assert await first_slot(2_001, tpm=120_000) == leaves
    # A fiftieth of the limit at most, and none of the input, which is known.
    assert await first_slot(9_999, tpm=121_000) < 1_060.3
    assert await first_slot(9_999, input_tpm=59_000) < 1_060.3
    assert await first_slot(9_999, output_tpm=59_000) == leaves


@pytest.mark.parametrize(("more", "waits"), [(0, False), (1, True)])
async def test_what_a_call_really_took_counts_for_a_minute(client: Redis, more: int, waits: bool) -> None:
    buyer = Buyer(client)
    assert await buyer.buys(1_000.0, 100) == [1_000.0]
    await buyer.settles(1_001.0, 1_000.0, -50_000)
    (slot,) = await buyer.buys(1_059.5, 9_900 + more)
    assert slot == pytest.approx(1_000.0 + BIN_S + SPAN_S if waits else 1_059.5)


async def test_an_empty_window_has_room_for_the_largest_request(client: Redis) -> None:
    (slot,) = await Buyer(client).buys(1_000.0, 60_000)
    (tokens,) = plan(MINUTE).dimensions
    assert slot == pytest.approx(1_000.0 + (60_000 - tokens.burst) / tokens.rate_per_s, abs=1e-3)


async def test_slots_that_are_sold_for_later_count_too(client: Redis) -> None:
    async def second(amount: int, prefix: str) -> float:
        await client.flushall()
        buyer = Buyer(client)
        (lump,) = await buyer.buys(1_000.0, 40_000)
        # The pace is free again at once, the window is not: nothing was charged to that bin.
        await buyer.settles(1_000.0, 1_000.0, 40_000)
        (slot,) = await buyer.buys(1_000.0, amount)
        assert slot < lump or slot >= bin_at(lump) * BIN_S + BIN_S + SPAN_S - 1e-5
        return slot

    assert await second(20_000, "a") < 1_021.0
    assert await second(20_001, "b") > 1_099.0


async def test_none_overtakes_one_that_waits_for_the_window(client: Redis) -> None:
    buyer = Buyer(client)
    await buyer.buys(1_000.0, 100)
    await buyer.settles(1_000.0, 1_000.0, -59_800)
    waits, small = await buyer.buys(1_060.0, 101, 10)
    assert waits == pytest.approx(1_000.0 + BIN_S + SPAN_S)
    assert small >= waits


async def test_slots_of_one_call_count_for_one_another(client: Redis) -> None:
    buyer = Buyer(client)
    await buyer.buys(1_000.0, 100)
    await buyer.settles(1_000.0, 1_000.0, -58_900)
    first, second = await buyer.buys(1_059.5, 600, 600)
    assert first == 1_059.5
    assert second == pytest.approx(1_000.0 + BIN_S + SPAN_S)


async def test_a_slot_is_charged_and_settled_in_its_own_bin(client: Redis) -> None:
    buyer = Buyer(client)
    first, second = await buyer.buys(1_000.0, 900, 700)
    assert await windows(client) == {f"tokens:{bin_at(first)}": 900, f"tokens:{bin_at(second)}": 700}
    await buyer.settles(1_010.0, second, 300)
    await buyer.says(1_010.0, refunds=[Refund(0, output_tokens=-50)])  # it went without a slot
    assert await windows(client) == {
        f"tokens:{bin_at(first)}": 900,
        f"tokens:{bin_at(second)}": 400,
        f"tokens:{bin_at(1_010.0)}": 50,
    }


async def test_input_and_output_are_remembered_apart(client: Redis) -> None:
    buyer = Buyer(client, Limits(input_tpm=60_000, output_tpm=30_000, algorithm="fixed"))
    await buyer.says(1_000.0, costs=[Cost(30, 20)])
    await buyer.says(1_000.0, refunds=[Refund(bin_at(1_000.0), 10, 5)])
    assert await windows(client) == {f"input:{bin_at(1_000.0)}": 20, f"output:{bin_at(1_000.0)}": 15}


async def test_what_has_left_the_window_is_forgotten(client: Redis) -> None:
    buyer = Buyer(client)
    await buyer.buys(1_000.0, 100)
    await buyer.buys(1_000.0 + SPAN_S, 100)
    assert len(await windows(client)) == 2
    before = await buyer.buys(1_000.2 + SPAN_S + BIN_S, 100)
    await buyer.settles(1_001.0 + SPAN_S, 1_000.0, 50)
    assert set(await windows(client)) == {f"tokens:{bin_at(slot)}" for slot in (1_000.0 + SPAN_S, *before)}
    assert 0 < await client.ttl(KEYS.window) <= 300


async def test_a_limit_without_windows_remembers_nothing(client: Redis) -> None:
    buyer = Buyer(client, Limits(rpm=600, tpm=60_000, algorithm="bucket"))
    await buyer.buys(1_000.0, 100)
    await buyer.settles(1_001.0, 1_000.0, 50)
    assert await windows(client) == {}


async def test_the_keys_of_an_organisation_share_its_window(client: Redis) -> None:
    one, other = (Buyer(client, Limits(), key=key, organisation=MINUTE, keys=2) for key in ("k1", "k2"))
    await one.buys(1_000.0, 100)
    await one.settles(1_000.0, 1_000.0, -59_501)
    assert await windows(client, KEYS.organisation_window) == {f"tokens:{bin_at(1_000.0)}": 59_601}
    assert await other.buys(1_060.2, 400) == pytest.approx([1_000.0 + BIN_S + SPAN_S])


async def test_a_lost_window_is_taken_for_full_and_empties_at_the_pace(client: Redis) -> None:
    buyer = Buyer(client, epoch=3)
    assert not (await buyer.says(1_000.0)).slots
    assert sum((await windows(client)).values()) == pytest.approx(60_000, rel=0.03)
    # A pace that is free would let 10,000 go at once.
    await buyer.settles(1_004.5, 1_004.5, 30_000)
    (slot,) = await buyer.buys(1_004.5, 10_000)
    assert slot == pytest.approx(1_011.4, abs=0.6)


async def test_an_organisation_s_lost_window_is_full_once(client: Redis) -> None:
    for key in ("k1", "k2"):
        buyer = Buyer(client, Limits(), key=key, organisation=MINUTE, keys=2, epoch=3)
        assert not (await buyer.says(1_000.0)).slots
        assert sum((await windows(client, KEYS.organisation_window)).values()) == pytest.approx(60_000, rel=0.03)


async def test_what_a_lost_schedule_sold_is_not_refunded_by_the_next(client: Redis) -> None:
    buyer = Buyer(client, epoch=3)
    (first,) = await buyer.buys(1_000.0, 600)
    before = (await windows(client)).items()
    await buyer.settles(1_001.0, 999.0, 50_000)
    await buyer.settles(1_001.0, first - BIN_S, 50_000)
    assert (await windows(client)).items() <= before
    # So many that the last of them shows how far the pace was sold.
    later = await buyer.buys(1_001.0, *[600] * 5)
    tokens = buyer.plan.dimensions[0]
    assert later[-1] == pytest.approx(first + (6 * 600 - tokens.burst) / tokens.rate_per_s, abs=1e-3)


# ---- another pace


@pytest.mark.parametrize(("before", "after"), [(12_000, 6_000), (12_000, 600), (6_000, 60), (600, 12_000)])
async def test_another_limit_makes_nothing_of_what_is_sold_already(client: Redis, before: int, after: int) -> None:
    former, latter = (Limits(rpm=rpm, algorithm="sliding") for rpm in (before, after))
    first = await schedule(client, former, now=1_000.0).acquire(ask("a", 1, 5))
    await schedule(client, former, now=1_010.0).acquire(ask("a", 2, 9))  # a bucket that was full
    second = await schedule(client, latter, now=1_010.0).acquire(ask("a", 3, 9, epoch=first.epoch))
    (pace,) = plan(latter).dimensions
    ledger = Ledger()
    ledger.add([1_010.0] * 9)  # as if all had been sent at once
    ledger.add(second.slots)
    if after < before:
        assert ledger.worst_excess(rate_per_s=pace.rate_per_s, burst=max(9, pace.burst)) <= 1e-6
        assert second.slots == [] or second.slots[0] > 1_010.0
    (old_pace,) = plan(former).dimensions
    assert (second.slots or [1_060.0])[0] >= 1_010.0 + (9 - old_pace.burst) / old_pace.rate_per_s


async def test_the_burst_of_another_limit_is_not_sold_as_well(client: Redis) -> None:
    former, latter = (Limits(rpm=rpm, algorithm="sliding") for rpm in (12_000, 6_000))
    epoch = (await schedule(client, former, now=1_000.0).acquire(ask("a", 1, 1))).epoch
    burst = await schedule(client, former, now=1_010.0).acquire(ask("a", 2, 4, epoch=epoch))
    assert burst.slots == [1_010.0] * 4
    lower = await schedule(client, latter, now=1_010.0).acquire(ask("b", 1, 2))
    gap_s = 1 / plan(latter).dimensions[0].rate_per_s
    assert lower.slots == pytest.approx([1_010.0 + gap_s, 1_010.0 + 2 * gap_s], abs=1e-5)
    # Processes of two plans take turns, and neither is a gift to the other.
    higher = await schedule(client, former, now=1_010.0).acquire(ask("a", 3, 1, epoch=epoch))
    assert higher.slots[0] >= 1_010.0 + 2 * gap_s


async def test_a_lower_limit_makes_no_pause_longer(client: Redis) -> None:
    former, latter = (Limits(rpm=rpm, algorithm="sliding") for rpm in (6_000, 600))
    epoch = (await schedule(client, former, now=1_000.0).acquire(ask("a", 1, 1))).epoch
    pause = await paused(client, former, now=1_000.0, epoch=epoch, asked_s=30.0)
    first = await schedule(client, latter, now=pause.until).acquire(ask("a", 2, 2, epoch=pause.epoch))
    assert first.slots[0] - pause.until < 2 / plan(latter).dimensions[0].rate_per_s


async def test_what_is_owed_at_a_lower_limit_is_owed_for_a_minute(client: Redis) -> None:
    former, latter = (Limits(tpm=tpm, algorithm="bucket") for tpm in (60_000, 6_000))
    took_more = Ask(process="a", seq=1, refunds=[Refund(0, output_tokens=-30_000)])
    await schedule(client, former, now=1_000.0).acquire(took_more)
    grant = await schedule(client, latter, now=1_000.0).acquire(
        Ask(process="a", seq=2, epoch=1, costs=[Cost(0, 60)], longest_horizon_s=100.0)
    )
    assert grant.now + grant.wait_s + sum(grant.slots[:1]) >= 1_050.0
    assert (grant.slots or [grant.now + grant.wait_s])[0] <= 1_061.0


# ---- pauses


async def paused(client: Redis, limits: Limits, *, now: float, epoch: int, asked_s: float | None = 2.0) -> Any:
    return await schedule(client, limits, now=now).pause(PauseReport(epoch=epoch, asked_s=asked_s, alone_s=60.0))


async def test_a_known_limit_is_cut_at_the_second_pause_and_recovers(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    full = plan(limits).dimensions[0].rate_per_s

    async def pace_at(now: float, seq: int, epoch: int) -> float:
        return pace_of(await schedule(client, limits, now=now).acquire(ask("a", seq, 5, backlog=5, epoch=epoch)))

    assert await pace_at(1_000.0, 1, 0) == pytest.approx(full, rel=0.01)
    epoch = (await paused(client, limits, now=1_010.0, epoch=1)).epoch
    assert await pace_at(1_012.0, 2, epoch) == pytest.approx(full, rel=0.01)
    epoch = (await paused(client, limits, now=1_030.0, epoch=epoch)).epoch
    assert await pace_at(1_032.0, 3, epoch) == pytest.approx(0.7 * full, rel=0.01)
    assert await pace_at(1_042.0, 4, epoch) == pytest.approx(0.8 * full, rel=0.01)
    assert await pace_at(1_080.0, 5, epoch) == pytest.approx(full, rel=0.01)


async def test_a_second_pause_after_more_than_a_minute_cuts_nothing(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    epoch = (await paused(client, limits, now=1_000.0, epoch=1)).epoch
    epoch = (await paused(client, limits, now=1_061.0, epoch=epoch)).epoch
    grant = await schedule(client, limits, now=1_063.0).acquire(ask("a", 1, 5, backlog=5, epoch=epoch))
    assert pace_of(grant) == pytest.approx(plan(limits).dimensions[0].rate_per_s, rel=0.01)


async def test_without_a_stated_time_pauses_grow_from_strike_to_strike(client: Redis) -> None:
    now, epoch, lengths = 1_000.0, 1, []
    for _ in range(8):
        pause = await paused(client, FAST, now=now, epoch=epoch, asked_s=None)
        lengths.append(round(pause.until - pause.now, 3))
        now, epoch = pause.until + 0.1, pause.epoch
    # The last strike is more than a minute after the one before.
    assert lengths == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 1.0]


async def test_a_429_from_before_the_pause_tells_only_a_longer_wait(client: Redis) -> None:
    first = await paused(client, FAST, now=1_000.0, epoch=1, asked_s=5.0)
    assert (first.epoch, first.until) == (2, 1_005.0)
    shorter = await paused(client, FAST, now=1_001.0, epoch=1, asked_s=1.0)
    assert (shorter.epoch, shorter.until) == (2, 1_005.0)
    longer = await paused(client, FAST, now=1_002.0, epoch=1, asked_s=9.0)
    assert (longer.epoch, longer.until) == (3, 1_011.0)
    after_it = await paused(client, FAST, now=1_012.0, epoch=1, asked_s=0.5)
    assert (after_it.epoch, after_it.until) == (4, 1_012.5)
    assert (await look(client, "p", "m", "k")).refused == 1
    # None of them counted as a strike.
    second = await paused(client, FAST, now=1_013.0, epoch=4, asked_s=None)
    assert second.until - second.now == 2.0


async def test_a_pause_is_told_on_the_channel(client: Redis) -> None:
    async with client.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(redis_keys.LIMITER_PAUSES)
        await paused(client, FAST, now=1_000.0, epoch=1, asked_s=2.5)
        message = None
        while message is None:
            message = await subscription.get_message(timeout=10.0)
        assert message["data"] == b"p:m:k 2 2500000"


async def test_a_pause_does_not_bring_nearer_what_was_far(client: Redis) -> None:
    limits = Limits(tpm=60_000, algorithm="sliding")
    took_more = Ask(process="a", seq=1, refunds=[Refund(0, output_tokens=-30_000)])
    await schedule(client, limits, now=1_000.0).acquire(took_more)
    await paused(client, limits, now=1_000.0, epoch=1, asked_s=1.0)
    grant = await schedule(client, limits, now=1_002.0).acquire(
        Ask(process="a", seq=2, epoch=2, costs=[Cost(0, 100)], longest_horizon_s=60.0)
    )
    (tokens,) = plan(limits).dimensions
    assert grant.now + grant.wait_s == pytest.approx(1_000.0 + (30_100 - tokens.burst) / tokens.rate_per_s, abs=1e-5)


async def test_after_a_pause_the_first_is_followed_at_the_pace(client: Redis) -> None:
    limits = Limits(rpm=1_200, tpm=60_000, algorithm="sliding")
    epoch = (await paused(client, limits, now=1_000.0, epoch=1)).epoch
    call = replace(ask("a", 1, 8, backlog=8, epoch=epoch), costs=[Cost(50, 50)] * 8)
    grant = await schedule(client, limits, now=1_002.0).acquire(call)
    requests, tokens = plan(limits).dimensions
    assert requests.burst > 1
    assert min(gaps(grant)) >= 100 / tokens.rate_per_s - 1e-5
    assert grant.slots[0] == pytest.approx(1_002.0 + 100 / tokens.rate_per_s, abs=1e-5)


async def test_the_pause_of_an_unlimited_model_holds_too(client: Redis) -> None:
    only_calls = Limits(max_in_flight=5)
    epoch = (await paused(client, only_calls, now=1_000.0, epoch=1, asked_s=3.0)).epoch
    grant = await schedule(client, only_calls, now=1_001.0).acquire(ask("a", 1, 1, epoch=epoch))
    assert grant.paused_until == 1_003.0
    assert all(slot >= 1_003.0 for slot in grant.slots)


async def test_a_lost_reply_is_told_again_without_void_slots(client: Redis) -> None:
    call = ask("a", 1, 5, backlog=5)
    first = await schedule(client, FAST, now=1_000.0).acquire(call)
    again = await schedule(client, FAST, now=1_000.5).acquire(call)
    assert again.slots == first.slots
    await paused(client, FAST, now=1_001.0, epoch=1)
    after = await schedule(client, FAST, now=1_001.5).acquire(call)
    assert (list(after.slots), after.epoch, after.paused_until) == ([], 2, 1_003.0)


# ---- calls in flight, turns and horizons


async def test_calls_in_flight_are_permitted_to_their_number(client: Redis) -> None:
    limits = Limits(max_in_flight=3)
    first = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 5, backlog=5))
    assert (len(first.slots), first.reason) == (3, "calls")
    full = await schedule(client, limits, now=1_000.1).acquire(ask("a", 2, 5, backlog=2, held=3, epoch=1))
    assert (len(full.slots), full.reason) == (0, "calls")
    one_ended = await schedule(client, limits, now=1_000.2).acquire(ask("a", 3, 5, backlog=2, held=2, epoch=1))
    assert len(one_ended.slots) == 1


async def test_calls_in_flight_are_shared_by_those_that_wait(client: Redis) -> None:
    limits = Limits(max_in_flight=5)
    await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 0, backlog=9))
    other = await schedule(client, limits, now=1_000.1).acquire(ask("b", 1, 9, backlog=9))
    assert len(other.slots) == 3
    first = await schedule(client, limits, now=1_000.2).acquire(ask("a", 2, 9, backlog=9, epoch=1))
    assert len(first.slots) == 2


async def test_a_stopped_process_does_not_hold_the_others_back(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    await schedule(client, limits, now=1_000.0).acquire(ask("stopped", 1, 1, backlog=50))
    granted = 0
    for step, seq in enumerate(range(1, 81)):
        call = ask("alive", seq, 40, backlog=40, epoch=int(seq > 1))
        grant = await schedule(client, limits, now=1_000.0 + step / 8).acquire(call)
        granted += len(grant.slots)
    # It has its lease still, but nobody waits for its turn.
    assert (grant.live, grant.processes) == (1, 2)
    assert granted >= 0.95 * 10 * plan(limits).dimensions[0].rate_per_s


async def test_who_has_left_is_not_waited_for(client: Redis) -> None:
    limits = Limits(rpm=600, algorithm="sliding")
    await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 1, backlog=50))
    await schedule(client, limits, now=1_000.1).acquire(Ask(process="a", seq=2, epoch=1, leaves=True))
    grant = await schedule(client, limits, now=1_000.2).acquire(ask("b", 1, 50, backlog=50))
    assert (grant.live, grant.processes) == (1, 1)


async def test_the_head_may_look_as_far_as_its_own_cost_takes(client: Redis) -> None:
    limits = Limits(tpm=60_000, algorithm="sliding")
    rate = plan(limits).dimensions[0].rate_per_s

    def wants(process: str, seq: int, costs: Sequence[Cost]) -> Ask:
        return Ask(process=process, seq=seq, costs=costs, longest_horizon_s=1.5)

    await schedule(client, limits, now=1_000.0).acquire(wants("a", 1, [Cost(0, 500)] * 9))
    large = await schedule(client, limits, now=1_000.0).acquire(wants("b", 1, [Cost(0, 6_000), Cost(0, 6_000)]))
    assert len(large.slots) == 1
    assert large.reason == "far"
    assert large.wait_s > 6_000 / rate


async def test_a_lump_pays_before_it_goes_for_what_exceeds_the_burst(client: Redis) -> None:
    limits = Limits(tpm=60_000, algorithm="sliding")
    (tokens,) = plan(limits).dimensions
    call = Ask(process="a", seq=1, costs=[Cost(0, 6_000), Cost(0, int(tokens.burst))], longest_horizon_s=60.0)
    lump, after = (await schedule(client, limits, now=1_000.0).acquire(call)).slots
    assert lump == pytest.approx(1_000.0 + (6_000 - tokens.burst) / tokens.rate_per_s, abs=1e-5)
    assert after == pytest.approx(1_000.0 + 6_000 / tokens.rate_per_s, abs=1e-5)


async def test_a_header_never_makes_a_schedule_earlier(client: Redis) -> None:
    limits, told = Limits(rpm=600, algorithm="sliding"), {"rpm": 600}
    first = await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 20, backlog=20))
    used_by_others = RateHeader("requests", 600, 500, 10.0)
    call = Ask(process="a", seq=2, epoch=1, headers=[used_by_others], costs=[Cost()])
    second = await schedule(client, limits, now=1_000.0, learned=told).acquire(call)
    assert second.slots[0] > first.slots[-1]


@pytest.mark.parametrize(
    "header",
    [
        RateHeader("requests", 600, 0, 1.0),  # a bucket of ten that is empty: ten are used, not 600
        RateHeader("tokens", 1_000_000, 100, 7_200.0),  # of a day
    ],
)
async def test_a_header_that_tells_of_nobody_else_slows_nobody_down(client: Redis, header: RateHeader) -> None:
    limits = Limits(rpm=600, tpm=60_000, algorithm="sliding")
    await schedule(client, limits, now=1_000.0).acquire(ask("a", 1, 12))
    told = {header.tells: header.limit} if header.tells else {}
    call = Ask(process="a", seq=2, epoch=1, headers=[header], costs=[Cost()])
    grant = await schedule(client, limits, now=1_005.0, learned=told).acquire(call)
    assert grant.slots == [1_005.0]


async def test_a_limit_that_becomes_known_lifts_what_a_429_has_left(client: Redis) -> None:
    first = Ask(process="a", seq=1, went_free=2)
    await schedule(client, Limits(), now=1_000.0).acquire(first)
    await paused(client, Limits(), now=1_001.0, epoch=1)
    unknown = await schedule(client, Limits(), now=1_003.0).acquire(ask("a", 2, 2, backlog=5, epoch=2))
    assert unknown.is_capped
    known = await schedule(client, FAST, now=1_003.0).acquire(ask("a", 3, 50, backlog=50, epoch=2))
    assert not known.is_capped
    assert known.slots[-1] < 1_003.5


async def test_the_figures_of_the_last_minute_fade_with_the_one_before(client: Redis) -> None:
    limits = Limits(rpm=60_000, algorithm="sliding")
    minute = 60.0 * 20_000_000
    call = replace(ask("a", 1, 30), costs=[Cost(10, 20)] * 30)
    await schedule(client, limits, now=minute + 10).acquire(call)
    for seq, now, requests in ((2, minute + 59.0, 30), (3, minute + 60.0, 30), (4, minute + 180.0, 0)):
        await schedule(client, limits, now=now).acquire(Ask(process="a", seq=seq, epoch=1, went_free=0))
        state: dict[Any, Any] = await client.hgetall("{rl:p:m}:k:state")
        counted = float(state[b"requests"]) + float(state[b"last_requests"])
        assert counted == requests
