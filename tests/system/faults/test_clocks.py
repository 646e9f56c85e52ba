"""A worker whose clock is wrong, and a Redis whose clock is set: promises.md rows 13 and 46."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks import PromptQueue
from tests.support.waiting import wait_until

from .harness import MESSAGES

if TYPE_CHECKING:
    from tasks.blocking import SyncQueue

    from .harness import World

HOW_TO = "libfaketime is not installed: it comes with `make install` (the wheel libfaketime)"


def faketime_library() -> str:
    spec = find_spec("libfaketime")
    if spec is None or spec.origin is None:
        pytest.skip(HOW_TO)
    (library,) = Path(spec.origin).parent.glob("vendor/libfaketime/src/libfaketime.so.1")
    return str(library)


@pytest.mark.promise(13)
def test_a_clock_two_hours_ahead_changes_nothing(world: World) -> None:
    environ = {
        "LD_PRELOAD": faketime_library(),
        "FAKETIME": "+2h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "0",
    }
    world.start_redis()
    # It looks for messages that were forgotten as often as it can.
    sweeps: dict[str, Any] = {"unacked_restore_interval": 0.2, "unacked_restore_throttle": 1}
    right = world.start_worker(concurrency=4)
    jobs = world.submit(8, model="slower", deadline_s=600)
    wait_until(lambda: world.redis.zcard("pm:leases") == 4, "the right one has its hands full")
    ahead = world.start_worker(concurrency=4, environ=environ, options=["-Q", "prompts,ahead"], **sweeps)
    delayed = world.submit(2, model="quick", delay_s=6)
    nap = world.celery().send_task("tests.system.faults.app.nap", args=[0], countdown=6)
    in_time = world.celery().send_task("tests.system.faults.app.nap", args=[0], expires=600, queue="ahead")
    too_late = world.celery().send_task("tests.system.faults.app.nap", args=[0], expires=-1, queue="ahead")
    assert [result.status for result in world.results(jobs)] == ["succeeded"] * 8
    assert world.calls(jobs, model="slower") == [1] * 8
    results = world.results(delayed)
    assert all(result.ok and 6 <= (result.queued_s or 0) < 30 for result in results)
    wait_until(nap.successful, "the nap ends")
    assert len(world.starts(nap.id)) == 1
    wait_until(lambda: in_time.ready() and too_late.ready(), "those with an `expires` end")
    assert (in_time.state, too_late.state) == ("SUCCESS", "REVOKED")
    assert "2 hours" not in right.log_text() and ahead.is_alive()
    world.wait_clean()


@pytest.mark.promise(46)
@pytest.mark.parametrize("step", ["-600", "+3600"])
def test_redis_clock_may_be_set(world: World, step: str) -> None:
    clock = world.directory / "faketime"
    clock.write_text("+0")
    environ = {
        "LD_PRELOAD": faketime_library(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    world.start_redis(environ=environ)
    first, _ = [world.start_worker(concurrency=2) for _ in range(2)]
    running = world.submit(4, model="slower")
    world.wait_in_flight(running, model="slower")
    in_time = world.submit(4, model="quick", deadline_s=60)
    (late,) = world.submit(1, model="quick", deadline_s=2)
    delayed = world.submit(1, model="quick", delay_s=2)
    before_s = world.redis.time()[0]
    clock.write_text(step)
    wait_until(lambda: abs(world.redis.time()[0] - before_s - int(step)) < 30, "the clock is set")
    first.kill()
    assert [result.status for result in world.results(running)] == ["succeeded"] * 4
    results = world.results(in_time)
    assert [result.status for result in results] == ["succeeded"] * 4
    assert all(0 <= (result.queued_s or 0) < 60 for result in results)
    assert world.results([late])[0].status == "expired"
    # Of the client that knew the clock as it was, and of one that knows it as it is.
    fresh: SyncQueue = world.enter(PromptQueue(world.server.url).sync)
    for queue in (world.queue, fresh):
        running = world.submit(2, model="slower")  # the one worker has its hands full
        world.wait_in_flight(running, model="slower")
        again = queue.submit(model="quick", messages=MESSAGES, deadline_s=30)
        too_late = queue.submit(model="quick", messages=MESSAGES, deadline_s=1)
        assert [result.status for result in world.results([again, too_late])] == ["succeeded", "expired"]
    for job in delayed:  # due by Redis's clock, whatever that shows
        assert job.cancel() or int(step) > 0
    world.results(delayed)
