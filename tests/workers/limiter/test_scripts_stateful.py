"""The scripts in a real Redis, at times of our choosing, against bounds that a plain ledger checks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping, Sequence
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
from tasks.wire import redis_keys
from tests.support.examples import examples
from tests.support.redis_server import RedisServer
from workers.limiter.cost import Cost, DimensionName
from workers.limiter.leasing.settlements import Refund
from workers.limiter.rate import BIN_S, Dimension, Plan, plan
from workers.limiter.shared.schedule import Ask, Grant, LimiterName, PauseReport, RedisSchedule

from .ledger import Ledger

NAMES = ("a", "b", "c")
KEYS = {"a": "k1", "b": "k1", "c": "k2"}
"""Two processes share a key; the third has another of the same organisation."""

BEGINNING = 1_790_000_000.0
LONGEST_HORIZON_S = 4.0
LEASE_S = 12.0
MOST_TOKENS = 1_500


@dataclass(eq=False)
class Call:
    """One slot, and the tokens that count for it now: what was reserved, or what was settled."""

    cost: Cost
    instant: float
    tokens: int


@dataclass
class Process:
    """What one process knows; a kill forgets all of it."""

    name: str
    key: str
    seq: int = 0
    last: tuple[Ask, Grant] | None = None
    in_flight: list[Call] = field(default_factory=list)
    seen_at: float = 0.0


@dataclass
class Granted:
    """What was granted within one limit, and not made void by a pause; of tokens also what came back, what each call
    has taken, and what calls took beyond their reservations."""

    requests: Ledger = field(default_factory=Ledger)
    reserved: Ledger = field(default_factory=Ledger)
    calls: list[Call] = field(default_factory=list)
    refunds: int = 0
    beyond: int = 0

    def add(self, calls: Sequence[Call]) -> None:
        self.requests.add(call.instant for call in calls)
        for call in calls:
            self.reserved.add([call.instant], call.cost.of("tokens"))
        self.calls += calls

    def check(self, paces: Mapping[DimensionName, Dimension]) -> None:
        if (pace := paces.get("requests")) is not None:
            burst = 1 if pace.shared_by else pace.burst
            assert self.requests.worst_excess(rate_per_s=pace.rate_per_s, burst=burst) <= 1e-6
        if (pace := paces.get("tokens")) is not None:
            burst = max(pace.burst, MOST_TOKENS) + self.refunds
            assert self.reserved.worst_excess(rate_per_s=pace.rate_per_s, burst=burst) <= 1e-3
            if pace.span_s:
                taken = Ledger([(call.instant, call.tokens) for call in self.calls])
                assert taken.most_in_window(pace.span_s) <= pace.limit + self.beyond


@dataclass
class Key(Granted):
    """One key's limit."""

    paused_until: float = 0.0
    epoch: int = 1

    def drop_what_was_not_sent(self, now: float) -> None:
        for ledger in (self.requests, self.reserved):
            ledger.entries = [entry for entry in ledger.entries if entry[0] <= now]
        self.calls = [call for call in self.calls if call.instant <= now]


class Scripts(RuleBasedStateMachine):
    """Processes ask, settle, repeat themselves, die, stall and meet 429s; limits change; the clock goes back."""

    url: ClassVar[str]
    limited: ClassVar[Sequence[str]]

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
        tpm=st.sampled_from([30_000, 200_000]),
        max_in_flight=st.none() | st.integers(1, 20),
        algorithm=st.sampled_from(["bucket", "sliding", "unknown"]),
        organisation=st.none() | st.builds(Limits, rpm=st.sampled_from([90, 900]), tpm=st.sampled_from([None, 60_000])),
    )
    def begin(
        self,
        rpm: int,
        tpm: int,
        max_in_flight: int | None,
        algorithm: Any,
        organisation: Limits | None,
    ) -> None:
        self.limits = Limits(
            rpm=rpm if "requests" in self.limited else None,
            tpm=tpm if "tokens" in self.limited else None,
            max_in_flight=max_in_flight,
            algorithm=algorithm,
        )
        self.organisation = organisation
        dimensions = self.plan().dimensions
        self.paces = {each.name: each for each in dimensions if not each.shared_by}
        self.paces_above = {each.name: each for each in dimensions if each.shared_by}
        self.real_now = BEGINNING
        self.wall_back_s = 0.0
        self.schedule_now = 0.0
        self.processes = {name: Process(name, KEYS[name]) for name in NAMES}
        self.generation = 0
        self.keys = {key: Key() for key in KEYS.values()}
        self.granted_to_all = Granted()

    # ---- helpers

    def plan(self) -> Plan:
        return plan(self.limits, organisation=self.organisation, keys=len(set(KEYS.values())))

    def schedule(self, key: str) -> RedisSchedule:
        fixed_now = f"{self.real_now - self.wall_back_s:.6f}"
        return RedisSchedule(self.redis, LimiterName("p", "m", key), self.plan(), fixed_now=fixed_now)

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
        grant = self.runner.run(self.schedule(process.key).acquire(asked))
        process.last = (asked, grant)
        process.seen_at = self.real_now
        self.check(process, asked, grant)
        return grant

    def check(self, process: Process, asked: Ask, grant: Grant) -> None:
        key = self.keys[process.key]
        assert grant.now >= self.schedule_now - 1e-5, "the schedule's time went back"
        self.schedule_now = grant.now
        assert list(grant.slots) == sorted(grant.slots), "a waiter overtook the one before it"
        for instant in grant.slots:
            assert instant >= grant.now - 1e-5, "a slot in the past"
            assert instant >= key.paused_until - 1e-5, "a slot inside a pause"
        calls = [
            Call(cost, instant, cost.of("tokens")) for instant, cost in zip(grant.slots, asked.costs, strict=False)
        ]
        key.add(calls)
        self.granted_to_all.add(calls)
        process.in_flight += calls

    # ---- what happens

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.real_now += seconds

    @rule(seconds=st.floats(0.001, 3_600))
    def somebody_sets_the_clock_back(self, seconds: float) -> None:
        self.wall_back_s += seconds

    @rule(
        name=st.sampled_from(NAMES),
        count=st.integers(1, 40),
        tokens=st.integers(1, MOST_TOKENS),
        more=st.integers(0, 100),
    )
    def ask(self, name: str, count: int, tokens: int, more: int) -> None:
        self.wants(self.processes[name], [Cost(tokens // 3, tokens - tokens // 3)] * count, more=more)

    def wants(self, process: Process, costs: Sequence[Cost], *, more: int) -> None:
        self.acquire(process, backlog=len(costs) + more, costs=costs)
        if self.limits.max_in_flight is not None:
            alive = sum(len(each.in_flight) for each in self.processes.values() if each.key == process.key)
            assert alive <= self.limits.max_in_flight, "more calls in flight than permitted"

    @precondition(lambda self: any(each.last for each in self.processes.values()))
    @rule(data=st.data())
    def a_reply_is_lost_and_the_call_made_again(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from([each for each in self.processes.values() if each.last]))
        before = self.state(process.key)
        assert process.last is not None
        asked, first = process.last
        second = self.runner.run(self.schedule(process.key).acquire(asked))
        assert second.slots == (first.slots if second.epoch == first.epoch else []), "other slots at the second time"
        assert self.state(process.key) == before, "the second time changed something"
        self.schedule_now = max(self.schedule_now, second.now)

    @precondition(lambda self: any(each.in_flight for each in self.processes.values()))
    @rule(data=st.data(), used_share=st.floats(0, 2))
    def settle(self, data: st.DataObject, used_share: float) -> None:
        process = data.draw(st.sampled_from([each for each in self.processes.values() if each.in_flight]))
        call = process.in_flight.pop(data.draw(st.integers(0, len(process.in_flight) - 1)))
        reserved = call.tokens
        call.tokens = int(reserved * used_share)
        back, bin_ = reserved - call.tokens, math.floor(call.instant / BIN_S)
        for granted in (self.keys[process.key], self.granted_to_all):
            granted.refunds += max(0, back)
            granted.beyond += max(0, -back)
        before, charged = self.tat(process.key, "tokens"), self.charged(process.key, bin_)
        self.acquire(process, refunds=[Refund(bin_, output_tokens=back)] if back else [])
        if (rate := self.token_rate(process.key)) is not None and before is not None:
            settled = before - back / rate
            # What calls took beyond their reservations is owed for a minute at most.
            settled = min(settled, max(before, self.schedule_now + 60))
            assert self.tat(process.key, "tokens") == pytest.approx(settled, abs=1e-5), "not settled by what was told"
        if charged is not None and (bin_ + 1) * BIN_S > self.schedule_now - self.paces["tokens"].span_s:
            assert self.charged(process.key, bin_) == charged - back, "not settled in the bin of its slot"

    @rule(name=st.sampled_from(NAMES))
    def kill(self, name: str) -> None:
        """It holds its calls until its lease is over; another of its name would be another process."""
        self.generation += 1
        dead = self.processes[name]
        self.processes[name] = Process(f"{name}{self.generation}", dead.key)
        if dead.in_flight:
            self.real_now += LEASE_S + 0.1

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        process = self.processes[name]
        if not process.in_flight and process.last is not None:
            self.acquire(process, leaves=True)
            self.generation += 1
            self.processes[name] = Process(f"{name}{self.generation}", process.key)

    @rule(name=st.sampled_from(sorted(set(KEYS.values()))), asked_s=st.none() | st.floats(0, 60), is_old=st.booleans())
    def a_429(self, name: str, asked_s: float | None, is_old: bool) -> None:
        key = self.keys[name]
        report = PauseReport(epoch=0 if is_old else key.epoch, asked_s=asked_s, alone_s=60.0)
        pause = self.runner.run(self.schedule(name).pause(report))
        assert pause.until >= key.paused_until - 1e-5, "a pause was made shorter"
        assert pause.until >= pause.now + (asked_s or 0.0) - 1e-5, "less than the provider asked for"
        assert pause.epoch >= key.epoch
        if pause.epoch > key.epoch:
            key.drop_what_was_not_sent(pause.now)
        key.epoch, key.paused_until = pause.epoch, pause.until
        self.schedule_now = max(self.schedule_now, pause.now)
        # Swarm testing leaves few asks near a pause to chance.
        for process in self.processes.values():
            if process.key == name:
                self.wants(process, [Cost(10, 10)] * 3, more=0)

    @rule(rpm=st.sampled_from([30, 300, 6_000]))
    def the_limit_is_lowered(self, rpm: int) -> None:
        if self.limits.rpm is not None:
            self.limits = self.limits.model_copy(update={"rpm": min(rpm, self.limits.rpm)})

    # ---- what must hold

    @invariant()
    def no_window_holds_more_than_the_rate_and_the_burst(self) -> None:
        for key in getattr(self, "keys", {}).values():
            key.check(self.paces)

    @invariant()
    def nor_do_all_keys_of_the_organisation_together(self) -> None:
        if hasattr(self, "granted_to_all"):
            self.granted_to_all.check(self.paces_above)

    # ---- looking inside

    def state(self, key: str) -> dict[bytes, bytes]:
        return self.runner.run(_hash(self.redis, f"{{rl:p:m}}:{key}:state"))

    def tat(self, key: str, name: str) -> float | None:
        value = self.state(key).get(f"tat:{name}".encode())
        return None if value is None else float(value)

    def charged(self, key: str, bin_: int) -> int | None:
        """To one bin of the window, if its limit has one."""
        if (pace := self.paces.get("tokens")) is None or not pace.span_s:
            return None
        window = self.runner.run(_hash(self.redis, redis_keys.limiter("p", "m", key).window))
        return int(window.get(f"tokens:{bin_}".encode(), 0))

    def token_rate(self, key: str) -> float | None:
        state, pace = self.state(key), self.paces.get("tokens")
        if pace is None:
            return None
        factor = float(state.get(b"factor", 1))
        return pace.rate_per_s if factor == 1 else None


async def _wiped(redis: Redis) -> None:
    await redis.flushall()


async def _hash(redis: Redis, key: str) -> dict[Any, Any]:
    fields: dict[Any, Any] = await cast("Awaitable[dict[Any, Any]]", redis.hgetall(key))
    return fields


# Apart, because hypothesis may draw much the same limits for a whole run, and each kind hides faults of its own: with a
# pace, say, a pause is also kept by the schedule's end.
@pytest.mark.parametrize("limited", [(), ("tokens",), ("requests",), ("requests", "tokens")])
def test_the_scripts_hold_their_bounds_whatever_happens(redis_server: RedisServer, limited: Sequence[str]) -> None:
    Scripts.url, Scripts.limited = redis_server.url, limited
    run_state_machine_as_test(
        Scripts,
        settings=settings(
            max_examples=examples(25),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
