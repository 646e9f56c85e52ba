"""The scripts in a real Redis, at times of our choosing, against bounds that a plain ledger checks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from config.catalog import Limits
from workers.limiter.cost import Cost
from workers.limiter.rate import plan
from workers.limiter.schedule import Ask, Grant, LimiterName, PauseReport, RedisSchedule

from .conftest import RedisServer
from .ledger import Ledger

NAMES = ("a", "b", "c")
BEGINNING = 1_790_000_000.0
LONGEST_HORIZON_S = 4.0
LEASE_S = 12.0


@dataclass
class Process:
    """What one process knows; a kill forgets all of it."""

    name: str
    seq: int = 0
    last: tuple[Ask, Grant] | None = None
    in_flight: list[Cost] = field(default_factory=list)
    seen_at: float = 0.0


class Scripts(RuleBasedStateMachine):
    """Processes ask, settle, repeat themselves, die, stall and meet 429s; limits change; the clock goes back."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(self.url)
        self.runner.run(_wiped(self.redis))

    def teardown(self) -> None:
        self.runner.run(self.redis.aclose())
        self.runner.close()

    @initialize(
        rpm=st.sampled_from([60, 600, 12_000]),
        tpm=st.none() | st.sampled_from([30_000, 200_000]),
        max_in_flight=st.none() | st.integers(1, 20),
        algorithm=st.sampled_from(["bucket", "sliding", "unknown"]),
    )
    def begin(self, rpm: int, tpm: int | None, max_in_flight: int | None, algorithm: Any) -> None:
        self.limits = Limits(rpm=rpm, tpm=tpm, max_in_flight=max_in_flight, algorithm=algorithm)
        self.fastest = {each.name: each for each in plan(self.limits).dimensions}
        self.real_now = BEGINNING
        self.wall_back_s = 0.0
        self.schedule_now = 0.0
        self.processes = {name: Process(name) for name in NAMES}
        self.generation = 0
        self.requests, self.reserved = Ledger(), Ledger()
        self.refunds = 0
        self.charges = 0
        self.paused_until = 0.0
        self.epoch = 1

    # ---- helpers

    def schedule(self) -> RedisSchedule:
        name = LimiterName("p", "m", "k")
        fixed_now = f"{self.real_now - self.wall_back_s:.6f}"
        return RedisSchedule(self.redis, name, plan(self.limits), fixed_now=fixed_now)

    def acquire(self, process: Process, **fields: object) -> Grant:
        process.seq += 1
        for each in self.processes.values():
            # One that has said nothing for longer than its lease counts as dead; a live one says something every 4 s.
            if self.real_now - each.seen_at > LEASE_S - 0.1:
                each.in_flight.clear()
        asked = Ask(
            process=process.name,
            seq=process.seq,
            epoch=process.last[1].epoch if process.last else 0,
            held=len(process.in_flight),
            longest_horizon_s=LONGEST_HORIZON_S,
            lease_s=LEASE_S,
            **fields,  # type: ignore[arg-type]  # named in the rules
        )
        grant = self.runner.run(self.schedule().acquire(asked))
        process.last = (asked, grant)
        process.seen_at = self.real_now
        self.check(asked, grant)
        return grant

    def check(self, asked: Ask, grant: Grant) -> None:
        assert grant.now >= self.schedule_now - 1e-5, "the schedule's time went back"
        self.schedule_now = grant.now
        assert list(grant.slots) == sorted(grant.slots), "a waiter overtook the one before it"
        for instant in grant.slots:
            assert instant >= grant.now - 1e-5, "a slot in the past"
            assert instant >= self.paused_until - 1e-5, "a slot inside a pause"
        self.requests.add(grant.slots)
        for instant, cost in zip(grant.slots, asked.costs, strict=False):
            self.reserved.add([instant], cost.of("tokens"))

    # ---- what happens

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.real_now += seconds

    @rule(seconds=st.floats(0.001, 3_600))
    def somebody_sets_the_clock_back(self, seconds: float) -> None:
        self.wall_back_s += seconds

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 40), tokens=st.integers(1, 1_500), more=st.integers(0, 100))
    def ask(self, name: str, count: int, tokens: int, more: int) -> None:
        process = self.processes[name]
        costs = [Cost(tokens // 3, tokens - tokens // 3)] * count
        grant = self.acquire(process, backlog=count + more, costs=costs)
        process.in_flight.extend(costs[: len(grant.slots)])
        if self.limits.max_in_flight is not None:
            alive = sum(len(each.in_flight) for each in self.processes.values())
            assert alive <= self.limits.max_in_flight, "more calls in flight than permitted"

    @precondition(lambda self: any(each.last for each in self.processes.values()))
    @rule(data=st.data())
    def a_reply_is_lost_and_the_call_made_again(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from([each for each in self.processes.values() if each.last]))
        before = self.state()
        assert process.last is not None
        asked, first = process.last
        second = self.runner.run(self.schedule().acquire(asked))
        assert second.slots == (first.slots if second.epoch == first.epoch else []), "other slots at the second time"
        assert self.state() == before, "the second time changed something"
        self.schedule_now = max(self.schedule_now, second.now)

    @precondition(lambda self: any(each.in_flight for each in self.processes.values()))
    @rule(data=st.data(), used_share=st.floats(0, 2))
    def settle(self, data: st.DataObject, used_share: float) -> None:
        process = data.draw(st.sampled_from([each for each in self.processes.values() if each.in_flight]))
        cost = process.in_flight.pop()
        back = cost.of("tokens") - int(cost.of("tokens") * used_share)
        before = self.tat("tokens")
        self.acquire(process, refund_output=back)
        self.refunds += max(0, back)
        if (rate := self.token_rate()) is not None and before is not None:
            assert self.tat("tokens") == pytest.approx(before - back / rate, abs=1e-5), "not settled by what was told"

    @rule(name=st.sampled_from(NAMES))
    def kill(self, name: str) -> None:
        """It holds its calls until its lease is over; another of its name would be another process."""
        self.generation += 1
        dead = self.processes[name]
        self.processes[name] = Process(f"{name}{self.generation}")
        if dead.in_flight:
            self.real_now += LEASE_S + 0.1

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        process = self.processes[name]
        if not process.in_flight and process.last is not None:
            self.acquire(process, leaves=True)
            self.generation += 1
            self.processes[name] = Process(f"{name}{self.generation}")

    @rule(asked_s=st.none() | st.floats(0, 10), is_old=st.booleans())
    def a_429(self, asked_s: float | None, is_old: bool) -> None:
        report = PauseReport(epoch=0 if is_old else self.epoch, asked_s=asked_s)
        pause = self.runner.run(self.schedule().pause(report))
        assert pause.until >= self.paused_until - 1e-5, "a pause was made shorter"
        assert pause.until >= pause.now + (asked_s or 0.0) - 1e-5, "less than the provider asked for"
        assert pause.epoch >= self.epoch
        if pause.epoch > self.epoch:
            self.drop_what_was_not_sent(pause.now)
        self.epoch, self.paused_until = pause.epoch, pause.until
        self.schedule_now = max(self.schedule_now, pause.now)

    @rule(rpm=st.sampled_from([30, 300, 6_000]))
    def the_limit_is_lowered(self, rpm: int) -> None:
        self.limits = self.limits.model_copy(update={"rpm": min(rpm, self.limits.rpm or rpm)})

    # ---- what must hold

    def drop_what_was_not_sent(self, now: float) -> None:
        for ledger in (self.requests, self.reserved):
            ledger.entries = [entry for entry in ledger.entries if entry[0] <= now]

    @invariant()
    def no_window_holds_more_than_the_rate_and_the_burst(self) -> None:
        if not hasattr(self, "fastest"):
            return
        pace = self.fastest["requests"]
        assert self.requests.worst_excess(rate_per_s=pace.rate_per_s, burst=pace.burst) <= 1e-6

    @invariant()
    def tokens_too_but_for_what_was_given_back(self) -> None:
        if "tokens" not in getattr(self, "fastest", {}):
            return
        pace = self.fastest["tokens"]
        burst = max(pace.burst, 1_500) + self.refunds
        assert self.reserved.worst_excess(rate_per_s=pace.rate_per_s, burst=burst) <= 1e-3

    # ---- looking inside

    def state(self) -> dict[bytes, bytes]:
        return self.runner.run(_hash(self.redis, "{rl:p:m}:k:state"))

    def tat(self, name: str) -> float | None:
        value = self.state().get(f"tat:{name}".encode())
        return None if value is None else float(value)

    def token_rate(self) -> float | None:
        state, pace = self.state(), self.fastest.get("tokens")
        if pace is None:
            return None
        factor = float(state.get(b"factor", 1))
        return pace.rate_per_s if factor == 1 else None


async def _wiped(redis: Redis) -> None:
    await redis.flushall()


async def _hash(redis: Redis, key: str) -> dict[Any, Any]:
    fields: dict[Any, Any] = await cast("Awaitable[dict[Any, Any]]", redis.hgetall(key))
    return fields


def test_the_scripts_hold_their_bounds_whatever_happens(redis_server: RedisServer) -> None:
    Scripts.url = redis_server.url
    run_state_machine_as_test(
        Scripts,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
