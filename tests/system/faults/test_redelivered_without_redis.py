"""Jobs that come again while the results' Redis is away wait for it: its errors are no job's result."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from tasks.blocking import SyncJob
from tasks.results import PromptResult
from tasks.wire.record import read_outcome
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

from .harness import Worker, World

WAITS = "Redis does not take a question about results"


def begin(world: World) -> tuple[RedisServer, list[SyncJob], Worker]:
    """Jobs that were called, the worker of which has died; another has them, and waits for the results' Redis."""
    world.start_redis()
    results: RedisServer = world.enter(RedisServer(world.directory / "results"))
    first = world.start_worker(environ={"PROMPTMILL_RESULT_URL": results.url})
    jobs = world.submit(8, model="slower")
    world.wait_in_flight(jobs, model="slower")
    first.kill()
    return results, jobs, first


def ends(results: RedisServer, jobs: Sequence[SyncJob]) -> list[PromptResult]:
    with results.client() as client:

        def ended() -> list[PromptResult] | None:
            found = [read_outcome(job.id, client.get(f"celery-task-meta-{job.id}")) for job in jobs]
            return [each for each in found if each is not None] if None not in found else None

        outcomes: list[PromptResult] = wait_until(ended, "all jobs have ended")
        return outcomes


@pytest.mark.promise(40)
@pytest.mark.parametrize("fault", ["away", "silent"])
def test_wait_until_it_answers(world: World, fault: str) -> None:
    results, jobs, _ = begin(world)
    results.kill() if fault == "away" else results.process.send_signal(signal.SIGSTOP)
    second = world.start_worker(environ={"PROMPTMILL_RESULT_URL": results.url})
    second.wait_logged(WAITS)
    results.start() if fault == "away" else results.process.send_signal(signal.SIGCONT)
    outcomes = ends(results, jobs)
    assert [outcome.status for outcome in outcomes] == ["succeeded"] * len(jobs)
    assert all(outcome.suspected_double_payment for outcome in outcomes)
    assert world.calls(jobs, model="slower") == [2] * len(jobs)


@pytest.mark.promise(40)
def test_go_back_when_their_worker_is_to_stop_meanwhile(world: World) -> None:
    results, jobs, _ = begin(world)
    results.kill()
    second = world.start_worker(environ={"PROMPTMILL_RESULT_URL": results.url})
    second.wait_logged(WAITS)
    second.signal(signal.SIGTERM)
    second.wait_exit()
    assert world.calls(jobs, model="slower") == [1] * len(jobs)
    results.start()
    world.start_worker(environ={"PROMPTMILL_RESULT_URL": results.url})
    outcomes = ends(results, jobs)
    assert all(outcome.ok and outcome.suspected_double_payment for outcome in outcomes)
    assert world.calls(jobs, model="slower") == [2] * len(jobs)
