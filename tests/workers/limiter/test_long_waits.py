"""A provider that asks for an hour, and one that refuses a single call: real scripts and limiters, virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from config.catalog import Limits
from tasks.results import Usage
from tests.support.redis_server import RedisServer
from tests.support.thorough import thorough
from tests.support.virtual_time import run_virtually
from workers.limiter.estimate import Estimator
from workers.limiter.heard.headers import learned
from workers.limiter.heard.long_waits import long_wait
from workers.limiter.limiter import Limiter, LimiterOptions
from workers.limiter.rate import Plan, plan
from workers.limiter.shared.schedule import LimiterName
from workers.limiter.waiting.wait_queue import Waiter

from .test_unstated_limits import HeardSchedule

Reply = tuple[float | None, dict[str, str]]
"""Retry-After in seconds where the call is refused, and the answer's headers."""

HOUR_S = 3_600.0


@dataclass
class Calls:
    """When they arrived, in seconds from the beginning."""

    answer: Callable[[float], Reply]
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """How long each was as it began, in seconds, in each process."""

    async def call(self, began_at: float) -> Reply:
        at = asyncio.get_running_loop().time() - began_at
        retry_after_s, headers = self.answer(at)
        (self.taken if retry_after_s is None else self.refused).append(at)
        await asyncio.sleep(0.05)
        return retry_after_s, headers


def play(
    server: RedisServer,
    calls: Calls,
    *,
    jobs: list[tuple[float, int]],
    for_s: float,
    limits: Limits | None = None,
    processes: int = 1,
) -> Calls:
    """`jobs`: how many come in which second. Each is tried until it is answered."""
    pauses = calls.pauses

    async def run(client: redis.Redis) -> None:
        loop = asyncio.get_running_loop()
        began_at, rng, limiters = loop.time(), random.Random(1), list[Limiter]()

        def schedule_of(terms: Plan, **options: Any) -> HeardSchedule:
            schedule = HeardSchedule(client, terms, rng, **options)
            schedule.hears = limiters
            return schedule

        def limiter_of(number: int) -> Limiter:
            def learn(told: Any) -> None:
                terms = plan(learned(limits or Limits(), told))
                limiter.replan(terms, schedule_of(terms, learned=told))

            terms = plan(limits or Limits())
            limiter = Limiter(
                terms,
                schedule_of(terms),
                options=LimiterOptions(f"process {number}"),
                estimator=Estimator(),
                now=lambda: 1_790_000_000 + loop.time(),
                on_learned=learn,
                on_pause=pauses.append,
            )
            return limiter

        async def job(limiter: Limiter, comes_at: float) -> None:
            await asyncio.sleep(comes_at)
            while True:
                permit = await limiter.admit(Waiter(Estimator().cost(input_chars=4), loop.create_future()))
                retry_after_s, headers = await calls.call(began_at)
                permit.observe(headers)
                if retry_after_s is None:
                    permit.settle(Usage(5, 5))
                    return
                permit.rate_limited(retry_after_s if retry_after_s >= 0 else None, headers)

        limiters += [limiter_of(number) for number in range(processes)]
        waiting = [
            asyncio.create_task(job(limiters[number % processes], comes_at))
            for comes_at, count in jobs
            for number in range(count)
        ]
        await asyncio.sleep(for_s)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for limiter in limiters:
            await limiter.close()

    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        run_virtually(run(client))
    return calls


@pytest.mark.parametrize(
    ("limits", "processes"),
    [(Limits(), 3), thorough(Limits(rpm=600), 1), thorough(Limits(), 1), thorough(Limits(rpm=600), 3)],
    ids=["unstated-3", "stated-1", "unstated-1", "stated-3"],
)
def test_an_hour_is_believed_when_a_second_answer_asks_for_it(
    redis_server: RedisServer, limits: Limits, processes: int
) -> None:
    calls = Calls(lambda at: (None, {}) if at < 0.5 or at > 2 * HOUR_S else (HOUR_S, {}))
    play(redis_server, calls, jobs=[(0, 3), (1, 40)], for_s=3 * HOUR_S, limits=limits, processes=processes)
    begun = [at for at in calls.refused if at < 10]
    probes = [at for at in calls.refused if at >= 10]
    assert len(begun) <= 40
    assert len(probes) == 2, "after a minute the second witness, and an hour later the third"
    assert probes[0] == pytest.approx(61, abs=4)
    assert probes[1] == pytest.approx(probes[0] + HOUR_S, abs=5)
    assert len(calls.taken) == 43
    assert sum(pause > 100 for pause in calls.pauses) == 2 * processes, "each process can tell people of both"
    assert min(at for at in calls.taken if at > 10) == pytest.approx(probes[1] + HOUR_S, abs=5)


def test_one_odd_answer_stops_nobody_for_an_hour(redis_server: RedisServer) -> None:
    calls = Calls(lambda at: (HOUR_S, {}) if 1 <= at < 2 else (None, {}))
    play(redis_server, calls, jobs=[(0, 3), (1, 1), (3, 20)], for_s=120, limits=Limits(rpm=600))
    assert len(calls.refused) == 1
    assert max(calls.pauses) < 61, "there is nothing to tell"
    assert len(calls.taken) == 24, "once the probe is answered, the others go"


def test_while_the_probe_is_out_nobody_else_goes(redis_server: RedisServer) -> None:
    calls = Calls(lambda at: (HOUR_S, {}) if at < 30 else (None, {}))
    play(redis_server, calls, jobs=[(0, 1), (1, 200)], for_s=200, limits=Limits(rpm=6_000))
    first, second = sorted(calls.taken)[:2]
    assert second - first >= 0.05, "the probe's answer takes as long"
    assert len(calls.taken) == 201


def test_after_one_429_a_key_is_used_at_the_pace_that_it_tells(redis_server: RedisServer) -> None:
    tells = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
    }
    calls = Calls(lambda at: (1.0, {}) if at < 0.2 else (None, tells))
    play(redis_server, calls, jobs=[(0, 1), (0.3, 50)], for_s=60)
    assert (len(calls.refused), len(calls.taken)) == (1, 51)
    assert max(calls.taken) < 30


def test_a_limit_whose_reset_is_an_epoch_instant_is_a_minutes(redis_server: RedisServer) -> None:
    left = iter([0, *range(119, 0, -1)])

    def answer(at: float) -> Reply:
        reset_at = 1_790_000_000 + 1_000 + at + 3
        return None, {
            "x-ratelimit-limit-requests": "120",
            "x-ratelimit-remaining-requests": str(next(left)),
            "x-ratelimit-reset-requests": f"{reset_at:.0f}",
        }

    calls = play(redis_server, Calls(answer), jobs=[(0, 1), (0.5, 1)], for_s=60)
    assert len(calls.taken) == 2
    assert max(calls.taken) < 10


@pytest.mark.parametrize(
    ("asked_s", "headers"),
    [(39.5, {}), (-1, {"x-rate-limit-reset-tokens": "39.5"})],
    ids=["retry-after", "reset-with-other-hyphens"],
)
def test_a_wait_below_a_minute_is_believed_at_once(
    redis_server: RedisServer, asked_s: float, headers: dict[str, str]
) -> None:
    calls = Calls(lambda at: (asked_s, headers) if at < 39.4 else (None, {}))
    play(redis_server, calls, jobs=[(0, 1)], for_s=100)
    assert (len(calls.refused), len(calls.taken)) == (1, 1)


def test_a_zero_is_no_advice_and_the_pauses_grow(redis_server: RedisServer) -> None:
    calls = Calls(lambda at: (-1, {}) if at < 5 else (None, {}))
    play(redis_server, calls, jobs=[(0, 1)], for_s=100)
    assert len(calls.refused) <= 3
    assert len(calls.taken) == 1


def test_what_people_are_told_names_provider_model_and_time() -> None:
    text = long_wait(LimiterName("groq", "llama", "a1b2c3"), HOUR_S, now=1_767_225_600.0)
    assert "Provider groq asks to wait 60 minutes before the next call of llama (key a1b2c3)." in text
    assert "until 01:00 UTC" in text
