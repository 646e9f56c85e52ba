"""`promptmill run` whose Redis does not count right: a replica that was behind takes over, a job ends twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks import PromptResult
from tasks.wire import redis_keys
from tests.support.failover import Failover
from tests.support.waiting import wait_until
from tests.tasks.harness import celery_record

from .run_harness import RunCommand, read_rows, write_rows

ROWS = 2_500
WINDOW_JOBS = 2_000
"""What `run` has under way at most, so that it waits with the rest of its rows for the first answers."""


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[Failover]:
    servers = Failover(tmp_path)
    yield servers
    servers.close()


def end(client: redis.Redis, job_ids: Iterable[str], *, group_id: str | None) -> None:
    with client.pipeline(transaction=True) as pipe:
        for job_id in job_ids:
            result = PromptResult(job_id, "succeeded", text="answer", response={"id": "r"})
            record = celery_record(job_id, result)
            pipe.set(redis_keys.result(job_id), record)
            pipe.publish(redis_keys.result(job_id), record)
            if group_id is not None:
                pipe.xadd(redis_keys.group_done(group_id), {"id": job_id})
                pipe.hincrby(redis_keys.group(group_id), "succeeded", 1)
        pipe.execute()


def unanswered(client: redis.Redis) -> list[str]:
    ids = [name.removeprefix(redis_keys.job("")) for name in client.scan_iter(redis_keys.job("*"), count=1_000)]
    results: Any = client.mget(map(redis_keys.result, ids)) if ids else []
    return [job_id for job_id, result in zip(ids, results, strict=True) if result is None]


def test_each_row_comes_once(promptmill_run: RunCommand, failover: Failover, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "in.jsonl", [{"prompt": f"What is {number}?"} for number in range(ROWS)])
    output = tmp_path / "out.jsonl"
    with (
        failover.master.client() as master,
        failover.replica.client() as replica,
        master.pubsub() as worker,
    ):
        worker.psubscribe("/0.celery.pidbox")  # `run` asks whether there is one
        run = promptmill_run.start(
            *(prompts, "-o", output, "--model", "m", "--workers", "0", "--redis", failover.url), "--json"
        )
        wait_until(lambda: jobs_of_group(master) == WINDOW_JOBS, description="the window is full")
        [jobs_key] = master.keys(redis_keys.group_jobs("*"))
        group_id = jobs_key.removeprefix(redis_keys.group("")).removesuffix(":jobs")
        failover.stop_following()
        # What the replica will not know: 500 answers, and the rows that are submitted after them.
        end(master, master.lrange(jobs_key, 0, 499), group_id=group_id)
        wait_until(lambda: jobs_of_group(master) == ROWS, description="all rows are submitted")
        end(master, master.lrange(jobs_key, ROWS - 50, -1), group_id=group_id)
        wait_until(lambda: output.exists() and len(output.read_bytes().splitlines()) >= 550, description="550 rows")
        failover.take_over()
        grouped = set(replica.lrange(jobs_key, 0, -1))
        while run.process.poll() is None:
            waiting = unanswered(replica)
            end(replica, [job_id for job_id in waiting if job_id in grouped], group_id=group_id)
            end(replica, [job_id for job_id in waiting if job_id not in grouped], group_id=None)
        finished = run.finish()
    assert finished.code == 0, finished.stderr
    rows = read_rows(output)
    assert sorted(rows) == list(range(1, ROWS + 1))
    assert all(row["error"] is None for row in rows.values())


def jobs_of_group(client: redis.Redis) -> int:
    return sum(client.llen(name) for name in client.keys(redis_keys.group_jobs("*")))


def test_a_row_counted_twice_hides_no_other(promptmill_run: RunCommand, failover: Failover, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "in.jsonl", [{"prompt": f"What is {number}?"} for number in range(20)])
    output = tmp_path / "out.jsonl"
    with failover.master.client() as master, master.pubsub() as worker:
        worker.psubscribe("/0.celery.pidbox")
        run = promptmill_run.start(
            *(prompts, "-o", output, "--model", "m", "--workers", "0", "--redis", failover.url), "--json"
        )
        wait_until(lambda: jobs_of_group(master) == 20, description="all rows are submitted")
        [jobs_key] = master.keys(redis_keys.group_jobs("*"))
        group_id = jobs_key.removeprefix(redis_keys.group("")).removesuffix(":jobs")
        ids = master.lrange(jobs_key, 0, -1)
        wait_until(lambda: master.hget(redis_keys.group(group_id), "total") == "20", description="the group is closed")
        end(master, [*ids[:10], *ids[:10]], group_id=group_id)
        wait_until(lambda: output.exists() and len(output.read_bytes().splitlines()) >= 10, description="10 rows")
        end(master, ids[10:], group_id=None)
        finished = run.finish()
    assert finished.code == 0, finished.stderr
    assert sorted(read_rows(output)) == list(range(1, 21))
