"""When an outage is tried again, and by whom."""

from __future__ import annotations

from typing import Any

import pytest

from workers.breaker import Breakers, Health, Outage, Reason
from workers.breaker.outage import AFTER_OTHERS_S, FORGET_S, PROBE_S
from workers.breaker.window import BreakerPolicy
from workers.prompt.failure import Failure

REFUSED = Reason("connection", "can't connect", is_unreachable=True)


class Job:
    """One that may try."""

    def __init__(self, stage: str = "connecting") -> None:
        self.stage = stage


@pytest.fixture
def breakers(clock: Any) -> Breakers:
    return Breakers(BreakerPolicy(failures=0), now=clock)


@pytest.fixture
def health(breakers: Breakers) -> Health:
    return breakers.health("p", "m", address="p.example")


def refuse(health: Health, began_at: float) -> None:
    failure = Failure("connection", "can't connect", retryable=True, unreachable=True)
    health.note_failure(failure, job_id="job", probe=Job(), began_at=began_at)


async def test_pauses_double_up_to_half_a_minute(health: Health, clock: Any) -> None:
    began, pauses = clock.now_s, []
    for _ in range(8):
        refuse(health, clock.now_s)
        [outage] = health.outages
        pauses.append(outage.pause_s)
        clock.now_s = outage.until
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert outage.since == began


async def test_calls_under_way_when_the_pause_began_tell_nothing_new(health: Health, clock: Any) -> None:
    began = clock.now_s
    refuse(health, began)
    clock.now_s += 2.0
    for _ in range(99):
        refuse(health, began - 1.0)
    [outage] = health.outages
    assert outage.until == began + 1.0


async def test_one_job_at_a_time_tries() -> None:
    outage = Outage.unreachable(REFUSED, now=10.0)
    job, other = Job(), Job()
    assert [await outage.claim(job, now) for now in (10.9, 11.0, 11.1)] == [False, True, False]
    outage.release(other)
    assert not await outage.claim(other, 11.2), "only the job that tries can give it up"
    outage.release(job)
    assert await outage.claim(other, 11.2)
    assert await outage.claim(job, 11.2 + PROBE_S), "one that hangs does not keep the others for ever"


async def test_a_connection_ends_it_for_those_that_wait(health: Health, clock: Any) -> None:
    refuse(health, clock.now_s)
    clock.now_s += 1.0
    probe, other = Job(), Job()
    assert await health.claim(probe) is None
    assert await health.claim(other) is not None
    probe.stage = "sent"
    assert await health.claim(other) is None and health.outages == ()


async def test_what_began_before_the_outage_does_not_end_it(health: Health, clock: Any) -> None:
    refuse(health, clock.now_s)
    health.note_answer(began_at=clock.now_s - 1.0)
    assert health.outages
    health.note_answer(began_at=clock.now_s + 1.0)
    assert not health.outages


async def test_an_outage_that_nobody_has_looked_at_is_another_one(health: Health, clock: Any) -> None:
    refuse(health, clock.now_s)
    clock.now_s += 1.0 + FORGET_S + 1.0
    refuse(health, clock.now_s)
    [outage] = health.outages
    assert (outage.since, outage.pause_s) == (clock.now_s, 1.0)


async def test_a_provider_that_is_away_is_so_for_all_its_models(breakers: Breakers, health: Health, clock: Any) -> None:
    early = breakers.health("p", "other")
    refuse(health, clock.now_s)
    assert early.outages == health.outages == breakers.health("p", "late").outages
    assert breakers.health("q", "m").outages == ()


async def test_the_job_that_failed_lets_another_try_first() -> None:
    outage = Outage("failing", 10.0, 10.0, 1.0, Reason("server_error", "busy", 503))
    job, other = Job(), Job()
    assert await outage.claim(job, 11.0)
    outage.fail_again(outage.reason, 12.0)
    assert not await outage.claim(job, outage.until)
    assert await outage.claim(other, outage.until)
    outage.release(other)
    assert await outage.claim(job, outage.until + AFTER_OTHERS_S), "but it tries where there is no other"
