"""Redis loses the last of what it said, while a group is read: nothing is missed, nothing comes twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks import Group, GroupRolledBack, PromptQueue, PromptResult, UnknownJob
from tasks.store.group_reader import GroupReader
from tasks.store.job_store import GroupEntry, GroupPage, GroupProgress
from tasks.wire import redis_keys
from tests.support.failover import Failover
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async

from .harness import celery_record

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[Failover]:
    servers = Failover(tmp_path)
    yield servers
    servers.close()


def end(server: RedisServer, group: Group, job_ids: Sequence[str], text: str = "answer") -> None:
    """What a worker stores for jobs that have an answer."""
    with server.client() as client, client.pipeline(transaction=True) as pipe:
        for job_id in job_ids:
            pipe.set(redis_keys.result(job_id), celery_record(job_id, answered(job_id, text)))
            pipe.xadd(redis_keys.group_done(group.id), {"id": job_id})
            pipe.hincrby(redis_keys.group(group.id), "succeeded", 1)
        pipe.execute()


def answered(job_id: str, text: str) -> PromptResult:
    return PromptResult(job_id, "succeeded", text=text, response={"choices": []})


class Reading:
    """A group that is read in the background."""

    def __init__(self, group: Group) -> None:
        self.ids: list[str] = []
        self._task = asyncio.create_task(self._read(group))

    async def _read(self, group: Group) -> None:
        async for result in group.as_completed():
            assert result.ok, result
            self.ids.append(result.id)

    async def until(self, count: int) -> None:
        await wait_until_async(
            lambda: len(self.ids) >= count or self._task.done(), description=f"{count} results are read"
        )

    async def end(self) -> list[str]:
        await asyncio.wait_for(self._task, 20)
        return sorted(self.ids)


def rows(ids: Sequence[str]) -> list[dict[str, Any]]:
    return [{"model": "m", "messages": MESSAGES, "id": job_id} for job_id in ids]


async def test_a_reader_goes_on_at_a_replica_that_was_behind(failover: Failover) -> None:
    ids = [f"job-{number:02}" for number in range(30)]
    async with PromptQueue(failover.url) as queue:
        group = await queue.submit_many(rows(ids))
        end(failover.master, group, ids[:10])
        failover.stop_following()
        reading = Reading(group)
        end(failover.master, group, ids[10:20])
        await reading.until(20)
        failover.take_over()
        # Those whose ends were lost end once more, among the others.
        end(failover.replica, group, [*ids[15:25], *ids[10:15]])
        await reading.until(25)
        end(failover.replica, group, ids[25:])
        assert await reading.end() == ids


async def test_a_reader_that_has_all_does_not_wait_for_repetitions(failover: Failover) -> None:
    ids = [f"job-{number:02}" for number in range(12)]
    async with PromptQueue(failover.url) as queue:
        group = await queue.submit_many(rows(ids))
        failover.stop_following()
        reading = Reading(group)
        end(failover.master, group, ids[:10])
        await reading.until(10)
        failover.take_over()
        end(failover.replica, group, ids[10:])
        assert await reading.end() == ids


async def test_jobs_submitted_after_the_takeover_are_waited_for(failover: Failover) -> None:
    """The new master does not know some jobs that were answered: they must not count for others."""
    async with PromptQueue(failover.url) as queue:
        group = queue.new_group()
        await group.extend(rows(["a", "b"]))
        failover.stop_following()
        reading = Reading(group)
        await group.extend(rows(["c", "d"]))
        end(failover.master, group, ["a", "c", "d"])
        await reading.until(3)
        failover.take_over()
        await group.extend(rows(["e"]))
        assert await group.close() == 3
        end(failover.replica, group, ["a", "b"])
        await reading.until(4)
        end(failover.replica, group, ["e"])
        assert await reading.end() == ["a", "b", "c", "d", "e"]


async def test_a_group_that_went_with_the_old_master_is_unknown(failover: Failover) -> None:
    async with PromptQueue(failover.url) as queue:
        failover.stop_following()
        group = await queue.submit_many(rows(["a", "b"]))
        reading = Reading(group)
        end(failover.master, group, ["a"])
        await reading.until(1)
        failover.take_over()
        with pytest.raises(UnknownJob):
            await reading.end()


async def test_a_list_of_jobs_that_was_lost_says_so(failover: Failover) -> None:
    async with PromptQueue(failover.url) as queue:
        group = queue.new_group()
        await group.extend(rows(["a"]))
        failover.stop_following()
        await group.extend(rows(["b"]))
        jobs = group.jobs()
        assert [(await anext(jobs)).id for _ in range(2)] == ["a", "b"]
        failover.take_over()
        await group.extend(rows(["c", "d", "e"]))
        with pytest.raises(GroupRolledBack, match="Begin again"):
            await anext(jobs)


# -- any loss, at any moment


class LosingStore:
    """A group in memory that loses the last of its entries now and then, and whose lost jobs end once more."""

    outage_s = 0.0

    def __init__(self, ids: Sequence[str], seed: int, *, losses: int) -> None:
        self.random = random.Random(seed)
        self.total = len(ids)
        self.left = list(ids)
        self.losses = losses
        self.stream: list[GroupEntry] = []
        self.results: set[str] = set()
        self._position = 0

    def _happens(self) -> None:
        """Between any two looks of the reader."""
        for _ in range(self.random.randrange(4)):
            if self.left:
                self._position += 1
                job_id = self.left.pop(self.random.randrange(len(self.left)))
                self.stream.append(GroupEntry(f"{self._position}", job_id))
                self.results.add(job_id)
        if self.losses and self.stream and self.random.random() < 0.2:
            self.losses -= 1
            kept = self.random.randrange(max(0, len(self.stream) - 8), len(self.stream))
            lost, self.stream = self.stream[kept:], self.stream[:kept]
            self.left += [entry.job_id for entry in lost]
            self.results -= {entry.job_id for entry in lost}

    async def group_ended(self, group_id: str, *, after: GroupEntry | None, wait_s: float) -> GroupPage | None:
        self._happens()
        progress = GroupProgress(total=self.total, submitted=self.total, succeeded=len(self.stream))
        start = 0 if after is None else int(after.position)
        entries = [entry for entry in self.stream if int(entry.position) > start][:5]
        return GroupPage(progress, entries, follows=after is None or after in self.stream)

    async def group_has(self, group_id: str, entries: Sequence[GroupEntry]) -> list[bool]:
        self._happens()
        return [entry in self.stream for entry in entries]

    async def result_page(self, job_ids: Sequence[str]) -> list[PromptResult | None]:
        self._happens()
        page = job_ids[: self.random.randrange(1, 4)]
        return [answered(job_id, "answer") if job_id in self.results else None for job_id in page]


@pytest.mark.parametrize("seed", range(40))
async def test_each_job_comes_once_whatever_is_lost(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.store.group_reader._LATE_RESULT_S", 0)
    ids = [f"{number:02}" for number in range(40)]
    store: Any = LosingStore(ids, seed, losses=6)
    results = [result async for page in GroupReader("pmg-g", store).pages() for result in page]
    assert all(result.ok for result in results)
    assert sorted(result.id for result in results) == ids


async def test_a_loss_beyond_memory_is_told(redis_server: RedisServer) -> None:
    ids = [f"job-{number:02}" for number in range(20)]
    async with PromptQueue(redis_server.url) as queue:
        group = await queue.submit_many(rows(ids))
        end(redis_server, group, ids[:10])
        pages = GroupReader(group.id, await queue._store(), remembered=5).pages()
        assert len(await anext(pages)) == 10
        with redis_server.client() as client:
            roll_back(client, group, kept=4)
            with pytest.raises(GroupRolledBack, match=r"Call as_completed\(\) again"):
                await anext(pages)
            end(redis_server, group, ids[4:])
            assert [result.id async for result in group.as_completed()] == ids


def roll_back(client: redis.Redis, group: Group, *, kept: int) -> None:
    """As a Redis that has lost its last second."""
    stream = redis_keys.group_done(group.id)
    entries: Any = client.xrange(stream)
    client.xdel(stream, *(position for position, _ in entries[kept:]))
    client.hincrby(redis_keys.group(group.id), "succeeded", kept - len(entries))


def take_back(client: redis.Redis, group: Group, job_id: str) -> None:
    """As `promptmill dead retry`: the job's end is taken back."""
    entries: Any = client.xrange(redis_keys.group_done(group.id))
    [position] = [position for position, fields in entries if fields["id"] == job_id]
    client.xdel(redis_keys.group_done(group.id), position)
    client.hincrby(redis_keys.group(group.id), "succeeded", -1)


async def test_a_job_whose_end_was_taken_back_does_not_count_twice(redis_server: RedisServer) -> None:
    """The count that a reader ended at was too high by one then, and one job was never delivered."""
    async with PromptQueue(redis_server.url) as queue:
        group = await queue.submit_many(rows(["a", "b", "c"]))
        end(redis_server, group, ["a", "b"])
        reading = Reading(group)
        await reading.until(2)
        with redis_server.client() as client:
            take_back(client, group, "a")
        end(redis_server, group, ["a"], text="in its second life")
        end(redis_server, group, ["c"])
        assert await reading.end() == ["a", "b", "c"]
