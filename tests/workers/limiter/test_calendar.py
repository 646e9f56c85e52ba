"""The organisation's calendar (calendar.lua): what several keys are sold together, when nothing comes back."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from config.catalog import Limits
from tests.support.examples import examples
from tests.support.redis_server import RedisServer
from workers.limiter.cost import Cost
from workers.limiter.rate import Plan, plan
from workers.limiter.shared.schedule import Ask, Grant, LimiterName, RedisSchedule

from .ledger import Ledger

ABOVE = Limits(tpm=60_000, algorithm="bucket")
(TOKENS,) = plan(Limits(), organisation=ABOVE).dimensions
BIN = TOKENS.burst / 2
MINUTE_S = 60.0

Purchase = tuple[str, int, int, float]
"""Whose key, how many requests, of how many tokens, and how long (s) nobody asks afterwards."""

purchases = st.lists(
    st.tuples(
        st.sampled_from(["k1", "k2", "k3"]),
        st.integers(1, 4),
        st.integers(1, int(6 * BIN)) | st.sampled_from([int(BIN), int(2 * BIN), int(2 * BIN) + 1]),
        st.just(0.0) | st.floats(0, 2),
    ),
    min_size=2,
    max_size=20,
)


async def buy(client: Redis, terms: Plan, key: str, seq: int, costs: list[Cost], now: float) -> Grant:
    schedule = RedisSchedule(client, LimiterName("p", "m", key), terms, fixed_now=f"{now:.6f}")
    return await schedule.acquire(
        Ask(process=key, seq=seq, epoch=min(seq - 1, 1), costs=costs, longest_horizon_s=MINUTE_S)
    )


async def sell_all(url: str, terms: Plan, wanted: list[Purchase]) -> Ledger:
    ledger, now, seqs = Ledger(), 1_000.0, dict.fromkeys(("k1", "k2", "k3"), 0)
    async with Redis.from_url(url) as client:
        await client.flushall()
        for key, count, tokens, idle_s in wanted:
            seqs[key] += 1
            grant = await buy(client, terms, key, seqs[key], [Cost(0, tokens)] * count, now)
            ledger.add(grant.slots, tokens)
            now += idle_s
    return ledger


@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rpm=st.sampled_from([None, 90, 900, 6_000]),
    of_key=st.builds(
        Limits, rpm=st.sampled_from([None, 60]), tpm=st.sampled_from([None, 30_000]), algorithm=st.just("bucket")
    ),
    wanted=purchases,
)
# Two lumps in a row, of which the second began in the bin in which the first ended, came half a burst too near.
@example(rpm=90, of_key=Limits(rpm=60, tpm=30_000, algorithm="bucket"), wanted=[("k1", 2, 1_417, 0.0)])
# What goes first in the bin behind a lump.
@example(rpm=None, of_key=Limits(), wanted=[("k1", 1, 700, 0.0), ("k2", 2, 150, 0.0), ("k3", 1, 1_000, 0.0)])
# Two that begin in one bin, for a later time each.
@example(
    rpm=None,
    of_key=Limits(rpm=60, tpm=30_000, algorithm="bucket"),
    wanted=[("k3", 2, 375, 0.1), ("k1", 3, 150, 0.0), ("k2", 3, 750, 0.0)],
)
def test_no_time_holds_more_than_the_pace_and_a_burst_or_lump(
    redis_server: RedisServer, rpm: int | None, of_key: Limits, wanted: list[Purchase]
) -> None:
    terms = plan(of_key, organisation=ABOVE.model_copy(update={"rpm": rpm}), keys=3)
    ledger = asyncio.run(sell_all(redis_server.url, terms, wanted))
    largest = max((amount for _, amount in ledger.entries), default=0)
    assert ledger.worst_excess(rate_per_s=TOKENS.rate_per_s, burst=max(TOKENS.burst, largest)) <= 1e-3


@settings(max_examples=examples(50), deadline=None, suppress_health_check=list(HealthCheck))
@given(wanted=purchases)
def test_lumps_waste_no_more_than_a_bin_each(redis_server: RedisServer, wanted: list[Purchase]) -> None:
    """Whole bins are looked for, so a lump may leave what others left in one; never more."""
    wanted = [(key, count, tokens, 0.0) for key, count, tokens, _ in wanted]
    ledger = asyncio.run(sell_all(redis_server.url, plan(Limits(), organisation=ABOVE, keys=3), wanted))
    total = sum(amount for _, amount in ledger.entries)
    last_s = max(instant for instant, _ in ledger.entries) - 1_000.0
    lumps = sum(amount > BIN for _, amount in ledger.entries)
    assert last_s * TOKENS.rate_per_s <= total + (lumps + 1) * BIN


async def test_a_lump_goes_when_its_place_has_lasted_for_a_burst(client: Redis) -> None:
    terms = plan(Limits(), organisation=ABOVE, keys=2)
    bin_s = BIN / TOKENS.rate_per_s
    begins = (int(1_000.0 / bin_s) + 1) * bin_s + 1e-5

    async def instants(key: str, tokens: int, seq: int = 1) -> list[Any]:
        grant = await buy(client, terms, key, seq, [Cost(0, tokens)], begins)
        return [round((slot - begins) / bin_s, 4) for slot in grant.slots]

    assert await instants("k1", int(2.5 * BIN)) == [1.0]  # bins 0, 1 and half of 2
    assert await instants("k2", int(3.0 * BIN)) == [3.5]  # half of 2, 3, 4 and half of 5
    assert await instants("k3", int(0.25 * BIN)) == [5.0]  # in 5, where there is room
    assert await instants("k4", int(1.0 * BIN)) == [5.75]  # a quarter of 5 and three of 6


async def test_what_is_sold_stays_sold_when_the_limit_changes(client: Redis) -> None:
    """Twenty requests are sold ahead. At half the limit they fill twice the time; at more there is room between."""

    def terms_of(rpm: int) -> Plan:
        return plan(Limits(), organisation=Limits(rpm=rpm, algorithm="bucket"), keys=3)

    async def next_place(rpm: int, key: str) -> float:
        """In requests at that limit, from the first that was sold."""
        terms = terms_of(rpm)
        (slot,) = (await buy(client, terms, key, 1, [Cost(0, 0)], 1_000.0)).slots
        return (slot - 1_000.0) * terms.dimensions[0].rate_per_s

    await buy(client, terms_of(60), "k0", 1, [Cost(0, 0)] * 20, 1_000.0)
    assert await next_place(30, "k1") == pytest.approx(21, abs=1.0)
    assert await next_place(120, "k2") <= 2


@settings(max_examples=examples(50), deadline=None, suppress_health_check=list(HealthCheck))
@given(wanted=purchases, tpm=st.sampled_from([20_000, 50_000, 60_000, 90_000, 600_000]))
def test_a_changed_limit_loses_and_adds_nothing(redis_server: RedisServer, wanted: list[Purchase], tpm: int) -> None:
    async def change() -> tuple[float, float]:
        await sell_all(redis_server.url, plan(Limits(), organisation=ABOVE, keys=3), [(*w[:3], 0.0) for w in wanted])
        async with Redis.from_url(redis_server.url) as client:
            before = await sold_in(client)
            other = plan(Limits(), organisation=Limits(tpm=tpm, algorithm="bucket"), keys=3)
            grant = await buy(client, other, "k9", 1, [Cost(0, 1)], 1_000.0)
            return before, await sold_in(client) - len(grant.slots)

    before, after = asyncio.run(change())
    assert after == pytest.approx(before, rel=1e-6, abs=1e-3)


async def sold_in(client: Redis) -> float:
    """Tokens in the organisation's calendar."""
    total = 0.0
    async for name in client.scan_iter("*"):
        if await client.type(name) == b"hash":
            fields: dict[bytes, bytes] = await client.hgetall(name)  # type: ignore[assignment] # redis-py's types
            total += sum(float(sold) for field, sold in fields.items() if re.fullmatch(rb"tokens:\d+", field))
    return total
