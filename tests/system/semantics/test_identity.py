"""Who is running: `current_task`, `task.request` and context variables, in every place of every job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

from .harness import RedisServer, Side, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def wide(redis_servers: dict[str, RedisServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """200 jobs at a time."""
    workers = Workers(redis_servers["ours"], tmp_path_factory.mktemp("wide"))
    yield workers.start(concurrency=200)
    workers.close()


def test_a_thousand_jobs_do_not_see_each_other(wide: Side) -> None:
    ids = wide.many("unique", [(n, 0.1) for n in range(1000)])
    assert wide.wait_results(*ids) == [[n, True, id_, "promptmill-loop"] for n, id_ in enumerate(ids)]
    wide.settle(dict.fromkeys(ids, 1))
    assert all(wide.count(id_, "prerun") == 1 for id_ in ids)


def test_current_task_in_sub_tasks_gather_and_threads(wide: Side) -> None:
    ids = wide.many("whereabouts", [()] * 100)
    for id_, seen in zip(ids, wide.wait_results(*ids), strict=True):
        assert seen == [id_] * 8


def test_200_jobs_run_at_a_time(wide: Side) -> None:
    assert wide.most_at_once("crowd", 200) == 200


@pytest.mark.parametrize("name", ["prerun_mark", "prerun_mark_async"])
def test_the_body_sees_context_variables_that_task_prerun_set(wide: Side, name: str) -> None:
    ids = wide.many(name, [()] * 50)
    assert wide.wait_results(*ids) == ids


def test_coroutines_share_a_thread_and_plain_functions_do_not(ours: Side) -> None:
    (pid, def_thread), (async_pid, async_thread) = ours.wait_results(ours.send("where"), ours.send("where_async"))
    assert pid == async_pid == ours.process.pid
    assert async_thread == "promptmill-loop"
    assert def_thread.startswith("promptmill-task")


def test_a_task_on_celerys_own_base_class(ours: Side) -> None:
    id_ = ours.send("foreign", 5)
    assert ours.wait_results(id_) == [[5, id_, id_]]


def test_an_ignored_result_is_not_stored(ours: Side) -> None:
    for name in ("silent", "silent_async"):
        id_ = ours.send(name, ignore_result=True)
        ours.settle({id_: 1})
        assert ours.redis.get(f"silent:{id_}") == "ran"
        assert ours.stored(id_) == {}


def test_a_rate_limit_spaces_the_starts(ours: Side) -> None:
    started = sorted(ours.wait_results(*ours.many("limited_async", [()] * 6)))
    assert started[-1] - started[0] > 0.2  # 20/s: five intervals of 50 ms; a slow machine only makes them longer


def test_a_place_is_free_again_at_once(workers: Workers) -> None:
    """With one place, a job's message is acknowledged before the next is taken: at once, not at the hub's next tick."""
    side = workers.start(concurrency=1)
    side.wait_results(*side.many("add_async", [(n, n) for n in range(40)]), timeout_s=25)  # 40 s, if each waits 1 s


def test_no_place_is_lost(ours: Side) -> None:
    """Runs after all the others of this worker in this module: whatever they did, every place is free again."""
    wait_until(lambda: ours.pool()["running"] == 0, "all jobs have ended")
    assert ours.pool()["free"] == ours.pool()["max-concurrency"]
