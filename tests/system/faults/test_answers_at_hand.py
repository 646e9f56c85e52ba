"""Answers in a worker's memory: given without Celery's request and tracer, and what others see of them."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.waiting import wait_until

from .fleet import Fleet
from .harness import LEASE_S, MESSAGES, Worker, World
from .test_privacy import drained
from .test_redis_suffers import AOF_ALWAYS

SCALED_APP = "tests.system.faults.scaled"

ASKS: dict[str, Any] = {"model": "quick", "messages": MESSAGES, "cache_ttl_s": 600}


def begun(world: World, job_id: str) -> bool:
    """Whether it took the usual way, on which a job begins."""
    return bool(world.redis.hexists(f"pm:job:{job_id}", "started_at"))


def remembering(world: World, *, options: tuple[str, ...] = ()) -> Worker:
    """A worker that has the answer in memory."""
    world.start_redis()
    worker = world.start_worker(app=SCALED_APP, options=options)
    first = world.queue.submit(**ASKS)
    assert not first.result().cached
    wait_until(lambda: world.redis.keys("pm:answer:*"), "it is stored")
    return worker


def test_answers_in_memory_begin_no_job(world: World) -> None:
    remembering(world, options=("-E",))
    seen: list[Any] = []
    with world.celery().connection_for_read() as listening:
        receiver = world.celery().events.Receiver(listening, handlers={"*": seen.append})
        with receiver.consumer_context() as (connection, *_):
            drained(connection)  # it subscribes when it first listens
            group = world.queue.submit_many({**ASKS, "metadata": n} for n in range(50))
            results = list(group.as_completed())
            ids = {result.id for result in results}

            def told() -> set[str]:
                return {event["uuid"] for event in seen if event["type"] == "task-succeeded"}

            wait_until(lambda: drained(connection) and told() >= ids, "events arrive")
    assert {(result.cached, result.attempts, result.cost_usd) for result in results} == {(True, 0, 0.0)}
    assert sorted(result.metadata for result in results) == list(range(50))
    assert not any(begun(world, job_id) for job_id in ids)
    assert not any(world.providers.calls("quick")[job_id] for job_id in ids)
    kinds = Counter(event["type"] for event in seen if event.get("uuid") in ids)
    assert kinds == dict.fromkeys(("task-received", "task-started", "task-succeeded"), 50)
    world.wait_clean()


def test_a_worker_stops_with_their_results_stored(world: World) -> None:
    worker = remembering(world)
    worker.signal(signal.SIGSTOP)
    jobs = [world.queue.submit(**ASKS) for _ in range(60)]
    jobs[0].cancel()
    worker.signal(signal.SIGCONT)
    world.wait_ended(jobs, 2)
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    world.start_worker(app=SCALED_APP)
    cancelled, *others = world.results(jobs)
    assert cancelled.status == "cancelled"
    assert all(result.cached for result in others)
    assert not any(world.calls(jobs, model="quick"))
    world.wait_clean()


def test_faults_lose_none_of_them(world: World) -> None:
    world.start_redis(*AOF_ALWAYS)
    fleet = Fleet(world, size=3, app=SCALED_APP)
    prompts = [{**ASKS, "messages": [{"role": "user", "content": f"What is {n} times {n}?"}]} for n in range(20)]
    groups = [world.queue.submit_many(prompts)]
    assert all(result.ok for result in groups[0].as_completed())

    faults: list[Callable[[], object]] = [
        world.server.cut,
        partial(fleet.kill, 0),
        world.server.crash,
        partial(fleet.kill, 1),
        partial(fleet.freeze, 2, 1.5 * LEASE_S),
    ]
    for fault in (*faults, world.server.cut):
        groups.append(world.queue.submit_many(prompts * 20))
        fault()
    results = [result for group in groups[1:] for result in group.as_completed()]
    assert len({result.id for result in results}) == len(results) == 6 * 400
    assert all(result.ok for result in results)
    calls = sum(world.providers.calls("quick").values())
    assert calls < len(results) / 10, "while Redis is away a new worker asks for what others have in memory"
    usual = sum(begun(world, result.id) for result in results)
    assert usual < len(results) / 2, "most took the short way"
    world.wait_clean()
    assert not world.dead()
