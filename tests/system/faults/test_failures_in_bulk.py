"""Jobs that fail by thousands cost their worker what jobs that succeed cost it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.waiting import wait_until

from .harness import MESSAGES, Providers, World

JOBS = 1_500
"""With their frames they take 300 MB, and six times the CPU."""

AS_MUCH_MORE = 60 * 2**20


def rows(model: str, **options: Any) -> Iterator[dict[str, Any]]:
    for _ in range(JOBS):
        yield {"model": model, "messages": MESSAGES, **options}


@pytest.mark.promise(43)
@pytest.mark.parametrize(
    ("status", "model", "options"), [("failed", "refuses", {}), ("expired", "answers", {"deadline_s": 0.001})]
)
def test_costs_what_success_costs(world: World, status: str, model: str, options: dict[str, Any]) -> None:
    latencies_ms = {"answers": 5, "refuses": 5}
    world.providers = world.enter(Providers(world.directory, latencies_ms, options={"refuses": ["--fault", "400=1.0"]}))
    world.start_redis()
    worker = psutil.Process(world.start_worker(concurrency=100).pid)

    def cost(group_rows: Iterator[dict[str, Any]], status: str) -> tuple[float, int]:
        used_s = sum(worker.cpu_times()[:2])
        group = world.queue.submit_many(group_rows)
        wait_until(lambda: getattr(group.progress(), status) == JOBS, f"{JOBS} jobs are {status}")
        return sum(worker.cpu_times()[:2]) - used_s, worker.memory_info().rss

    succeeding_s, rss_before = cost(rows("answers"), "succeeded")
    ending_s, rss_after = cost(rows(model, **options), status)
    assert rss_after - rss_before < AS_MUCH_MORE
    assert ending_s < 2.5 * succeeding_s


def test_a_tasks_exceptions_keep_tracebacks_and_do_not_pile_up(world: World) -> None:
    world.start_redis()
    worker = psutil.Process(world.start_worker(concurrency=100).pid)
    app = world.celery()
    results = [app.send_task("tests.system.faults.app.add", args=(1, None)) for _ in range(20)]
    wait_until(lambda: all(result.ready() for result in results), "the first have failed")
    assert "in add" in results[0].traceback
    before = worker.memory_info().rss
    results += [app.send_task("tests.system.faults.app.add", args=(1, None)) for _ in range(JOBS // 2)]
    wait_until(lambda: world.queued() == 0 and results[-1].ready(), "all have failed")
    assert worker.memory_info().rss - before < 2 * AS_MUCH_MORE
