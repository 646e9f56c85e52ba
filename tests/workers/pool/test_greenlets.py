"""The greenlets in which jobs are traced: used again, and empty between two jobs."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from celery import Celery
from greenlet import getcurrent

from workers.pool import greenlets
from workers.pool.app import App
from workers.pool.greenlets import Cancellable, in_job, run_job, wait


class Thing:
    """Something to look whether anybody holds it."""


@pytest.fixture(autouse=True)
def nothing_of_before() -> Iterator[None]:
    """No greenlets, and no collector: what is gone must be gone without it, because it comes seldom."""
    greenlets._idle.stack.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def nap(seen: list[Any], thing: Any = None) -> Any:
    seen.append(getcurrent())
    wait(asyncio.sleep(0.001))
    return thing


async def job(seen: list[Any], thing: Any = None) -> Any:
    return await run_job(Cancellable(), object(), partial(nap, seen, thing))


async def test_there_are_as_many_as_jobs_were_in_flight_at_once() -> None:
    seen: list[Any] = []
    for _ in range(5):
        await asyncio.gather(*(job(seen) for _ in range(3)))
    assert len(seen) == 15
    assert len(set(seen)) == 3
    assert not in_job()


async def test_nothing_of_a_job_is_kept() -> None:
    thing = Thing()
    alive = weakref.ref(thing)
    returned = await asyncio.create_task(job([], thing))
    del thing, returned
    await asyncio.sleep(0)  # the task that has ended is still at hand in this turn of the loop
    assert alive() is None


async def test_nor_is_the_exception_that_ended_it() -> None:
    alive: list[weakref.ref[Any]] = []

    class Failed(Exception):
        pass

    def fail() -> None:
        wait(asyncio.sleep(0))
        error = Failed()
        alive.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def run() -> None:
        with pytest.raises(Failed):
            await run_job(Cancellable(), object(), fail)

    for _ in range(2):
        await asyncio.create_task(run())
    assert [each() for each in alive] == [None, None]


async def test_one_that_nobody_has_is_freed_with_its_waiting_job() -> None:
    idle, waiting = greenlets.JobGreenlet(), greenlets.JobGreenlet()
    ended: list[str] = []

    def sleep_for_ever(thing: Thing) -> None:
        try:
            wait(asyncio.sleep(60))
        finally:
            ended.append(repr(thing))

    thing = Thing()
    waiting.begin(partial(sleep_for_ever, thing), Cancellable()).close()
    alive = [weakref.ref(each) for each in (idle, waiting, thing)]
    del idle, waiting, thing
    gc.collect()
    assert [each() for each in alive] == [None, None, None]
    assert len(ended) == 1


async def test_one_whose_job_has_failed_serves_the_next() -> None:
    seen: list[Any] = []

    def leave() -> None:
        seen.append(getcurrent())
        wait(asyncio.sleep(0))
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await run_job(Cancellable(), object(), leave)
    await job(seen)
    assert seen[0] is seen[1]


async def test_a_cancelled_one_too() -> None:
    seen: list[Any] = []

    def sleep_long() -> None:
        seen.append(getcurrent())
        wait(asyncio.sleep(60))

    running = asyncio.create_task(run_job(Cancellable(), object(), sleep_long))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    await job(seen)
    assert seen[0] is seen[1]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_the_time_zone_is_celerys(zone: str | None) -> None:
    settings = {"timezone": zone} if zone else {}
    ours, celerys = App("ours", set_as_current=False), Celery("celerys", set_as_current=False)
    for app in (ours, celerys):
        app.conf.update(settings)
    assert [ours.uses_utc_timezone()] * 2 == [celerys.uses_utc_timezone(), zone != "Europe/Berlin"]
