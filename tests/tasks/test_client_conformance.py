"""One suite for both queues: Redis with a worker, and `InMemoryQueue`."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tasks import (
    Group,
    IdTaken,
    InvalidJob,
    Job,
    JobCancelled,
    JobFailed,
    PromptQueue,
    RateLimited,
    ResultTimeout,
    SyncGroup,
    SyncJob,
    SyncQueue,
    UnknownJob,
)
from tasks.testing import InMemoryQueue
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async

from .harness import Answer, FakeWorker, Gate

MESSAGES = [{"role": "user", "content": "Hello"}]


class Script:
    """What the jobs of a test are answered with."""

    def __init__(self) -> None:
        self.with_: Answer = lambda body: f"Answer to {body['messages'][-1]['content']}"

    def __call__(self, body: dict[str, Any]) -> Any:
        return self.with_(body)


@pytest.fixture
def script() -> Script:
    return Script()


@contextmanager
def redis_queue(server: RedisServer, script: Script) -> Iterator[PromptQueue]:
    with FakeWorker(server.url, script):
        queue = PromptQueue(server.url)
        yield queue
        queue.sync.close()


@pytest.fixture(params=["redis", "memory"])
def queue(request: pytest.FixtureRequest, script: Script) -> Iterator[PromptQueue]:
    if request.param == "memory":
        in_memory = InMemoryQueue(script)
        yield in_memory
        in_memory.sync.close()
    else:
        with redis_queue(request.getfixturevalue("redis_server"), script) as queue:
            yield queue


def rows(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"model": "m", "messages": [{"role": "user", "content": str(number)}], "metadata": number}


async def test_a_job_is_answered(queue: PromptQueue) -> None:
    job = await queue.submit(model="m", messages=MESSAGES, metadata={"mine": [1]})
    answer = await job.result(timeout_s=10)
    assert (answer.id, answer.ok, answer.text, answer.model) == (job.id, True, "Answer to Hello", "m")
    assert answer.metadata == {"mine": [1]}
    assert answer.response is not None
    assert await job.status() == "succeeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_read_as_it_comes(queue: PromptQueue, script: Script, stream: bool) -> None:
    gate = Gate()
    script.with_ = gate.holding("24 clips")
    job = await queue.submit(model="m", messages=MESSAGES, stream=stream)
    reading = asyncio.create_task(_read(job))
    with pytest.raises(ResultTimeout):
        await anext(queue.job(job.id).stream(timeout_s=0.05))
    gate.open()
    assert "".join(await reading) == "24 clips"
    assert [piece async for piece in queue.job(job.id).stream(after=3)] == ["clips"]
    events = [event async for event in job.events()]
    assert [event.kind for event in events] == ["started", "text", "end"]
    assert events[-1].number == len("24 clips")


async def _read(job: Job) -> list[str]:
    return [piece async for piece in job.stream()]


async def test_what_is_read_ends_as_the_job_does(queue: PromptQueue, script: Script) -> None:
    script.with_ = lambda body: RateLimited("too many requests")
    job = await queue.submit(model="m", messages=MESSAGES, stream=True)
    with pytest.raises(RateLimited):
        await _read(job)
    with pytest.raises(UnknownJob):
        await _read(queue.job("never-submitted"))


async def test_who_reads_hears_of_the_cancel(queue: PromptQueue, script: Script) -> None:
    gate = Gate()
    script.with_ = gate.holding("never")
    job = await queue.submit(model="m", messages=MESSAGES, stream=True)
    reading = asyncio.create_task(_read(job))
    await wait_until_async(lambda: _is_running(job), description="it runs")
    assert await job.cancel()
    with pytest.raises(JobCancelled):
        await reading
    gate.open()


async def _is_running(job: Job) -> bool:
    return await job.status() == "running"


def test_the_blocking_twin_reads_as_it_comes(queue: PromptQueue) -> None:
    job = queue.sync.submit(model="m", messages=MESSAGES, stream=True)
    assert "".join(job.stream(timeout_s=10)) == "Answer to Hello"
    assert [event.kind for event in job.events()] == ["started", "text", "end"]


async def test_an_answer_can_be_read_again_and_by_id(queue: PromptQueue) -> None:
    job = await queue.submit(model="m", messages=MESSAGES)
    assert await job.result(timeout_s=10) == await job.result(0) == await queue.job(job.id).result()


async def test_an_embedding_comes_back_as_the_providers_body(queue: PromptQueue, script: Script) -> None:
    script.with_ = lambda body: {"data": [{"index": 0, "embedding": [0.5, -1]}]}
    answer = await (await queue.submit(model="e", input="text")).result(timeout_s=10)
    assert answer.text is None
    assert answer.response == {"data": [{"index": 0, "embedding": [0.5, -1]}]}


async def test_a_failed_job_raises_its_kind(queue: PromptQueue, script: Script) -> None:
    script.with_ = lambda body: RateLimited("too many requests")
    job = await queue.submit(model="m", messages=MESSAGES)
    with pytest.raises(RateLimited, match="rate_limited: too many requests") as caught:
        await job.result(timeout_s=10)
    assert caught.value.result is not None
    assert caught.value.result.error is not None
    assert await job.status() == "failed"


async def test_many_wait_for_the_same_job(queue: PromptQueue, script: Script) -> None:
    gate = Gate()
    script.with_ = gate.holding("late")
    job = await queue.submit(model="m", messages=MESSAGES)
    waiting = [asyncio.create_task(queue.job(job.id).result(timeout_s=10)) for _ in range(20)]
    await wait_until_async(lambda: _has_status(job, "running"), description="the job runs")
    gate.open()
    assert {answer.text for answer in await asyncio.gather(*waiting)} == {"late"}


async def test_waiting_ends_in_time_and_the_job_goes_on(queue: PromptQueue, script: Script) -> None:
    gate = Gate()
    script.with_ = gate.holding("late")
    job = await queue.submit(model="m", messages=MESSAGES)
    with pytest.raises(ResultTimeout, match=job.id):
        await job.result(timeout_s=0.02)
    gate.open()
    assert (await job.result(timeout_s=10)).text == "late"


async def test_an_unknown_job_is_not_a_queued_one(queue: PromptQueue) -> None:
    job = queue.job("never-submitted")
    assert await job.status() == "unknown"
    with pytest.raises(UnknownJob, match="never-submitted"):
        await job.result()


@pytest.mark.covers("option", "id")
async def test_submitting_an_id_again_returns_the_same_job(queue: PromptQueue) -> None:
    first = await queue.submit(model="m", messages=MESSAGES, id="same")
    answer = await first.result(timeout_s=10)
    again = await queue.submit(model="m", messages=[{"role": "user", "content": "Other"}], id="same")
    assert await again.result(timeout_s=10) == answer


async def test_cancelling(queue: PromptQueue, script: Script) -> None:
    gate = Gate()
    script.with_ = gate.holding("never seen")
    job = await queue.submit(model="m", messages=MESSAGES)
    assert await job.cancel() is True
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=10)
    assert await job.status() == "cancelled"
    assert await job.cancel() is False


async def test_cancelling_an_unknown_job(queue: PromptQueue) -> None:
    assert await queue.job("unknown").cancel() is False
    assert await queue.job("unknown").status() == "unknown"
    job = await queue.submit(model="m", messages=MESSAGES, id="unknown")
    assert (await job.result(timeout_s=10)).ok


async def test_a_forgotten_cancelled_id_may_be_submitted_again(queue: PromptQueue, script: Script) -> None:
    gate = Gate()
    answer, script.with_ = script.with_, gate.holding("never seen")
    job = await queue.submit(model="m", messages=MESSAGES, id="again")
    assert await job.cancel() is True
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=10)
    await queue.forget(job.id)
    script.with_ = answer
    again = await queue.submit(model="m", messages=MESSAGES, id="again")
    assert (await again.result(timeout_s=10)).ok


async def test_cancelling_an_answered_job_is_too_late(queue: PromptQueue) -> None:
    job = await queue.submit(model="m", messages=MESSAGES)
    await job.result(timeout_s=10)
    assert await job.cancel() is False
    assert await job.status() == "succeeded"


async def test_forgotten_jobs_are_unknown(queue: PromptQueue) -> None:
    job = await queue.submit(model="m", messages=MESSAGES)
    await job.result(timeout_s=10)
    await queue.forget(job.id)
    assert await job.status() == "unknown"
    await queue.forget()


async def test_invalid_jobs_are_not_stored(queue: PromptQueue) -> None:
    with pytest.raises(InvalidJob, match="temperature"):
        await queue.submit(model="m", messages=MESSAGES, id="bad", temperature=float("nan"))
    assert await queue.job("bad").status() == "unknown"


# -- groups


async def test_a_group_yields_each_result_once(queue: PromptQueue) -> None:
    group = await queue.submit_many(rows(700))
    answers = [answer async for answer in group.as_completed()]
    assert sorted(answer.metadata for answer in answers) == list(range(700))
    assert all(answer.text == f"Answer to {answer.metadata}" for answer in answers)
    progress = await group.progress()
    assert (progress.total, progress.submitted, progress.succeeded, progress.finished) == (700, 700, 700, True)


async def test_failed_jobs_are_results_of_a_group(queue: PromptQueue, script: Script) -> None:
    def every_third_fails(body: dict[str, Any]) -> Any:
        if int(body["messages"][0]["content"]) % 3 == 0:
            raise RateLimited("no")
        return "yes"

    script.with_ = every_third_fails
    group = await queue.submit_many(rows(30))
    answers = [answer async for answer in group.as_completed()]
    assert {answer.metadata for answer in answers if not answer.ok} == set(range(0, 30, 3))
    assert (await group.progress()).failed == 10


async def test_a_group_can_be_read_from_the_start_by_another(queue: PromptQueue) -> None:
    group = await queue.submit_many(rows(40))
    first = [answer async for answer in group.as_completed()]
    again = [answer async for answer in queue.group(group.id).as_completed()]
    assert first == again


async def test_results_come_while_the_group_is_filled(queue: PromptQueue) -> None:
    group = queue.new_group()
    await group.submit(**next(rows(1)))
    reading = group.as_completed()
    first = await anext(reading)
    assert first.metadata == 0 and (await group.progress()).total is None
    await group.extend([{"model": "m", "messages": MESSAGES}])
    assert await group.close() == 2
    assert len([answer async for answer in reading]) == 1


async def test_rows_may_come_from_an_async_iterable(queue: PromptQueue) -> None:
    async def arriving() -> AsyncIterator[dict[str, Any]]:
        for row in rows(5):
            await asyncio.sleep(0)
            yield row

    group = await queue.submit_many(arriving())
    assert [job.id async for job in group.jobs()] != []
    assert len([answer async for answer in group.as_completed()]) == 5


async def test_an_empty_group_ends(queue: PromptQueue) -> None:
    group = await queue.submit_many([])
    assert [answer async for answer in group.as_completed()] == []
    assert [job async for job in group.jobs()] == []
    assert (await group.progress()).finished


async def test_a_bad_row_is_named_and_those_before_it_run(queue: PromptQueue) -> None:
    bad = [*rows(3), {"model": "m"}, *rows(2)]
    with pytest.raises(InvalidJob, match="row 3: messages, input: neither") as caught:
        await queue.submit_many(bad)
    [note] = caught.value.__notes__
    group = queue.group(note.split()[1].rstrip(":"))
    assert len([answer async for answer in group.as_completed()]) == 3


@pytest.mark.parametrize("row", ["text", None, {1: "model"}])
async def test_a_row_must_be_an_object(queue: PromptQueue, row: Any) -> None:
    with pytest.raises(InvalidJob, match="row 0: must be an object"):
        await queue.new_group().extend([row])


async def test_an_error_of_the_rows_comes_out_as_it_is(queue: PromptQueue) -> None:
    def breaking() -> Iterator[dict[str, Any]]:
        yield from rows(300)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await queue.submit_many(breaking())


async def test_nothing_enters_a_closed_group(queue: PromptQueue) -> None:
    group = await queue.submit_many([{"model": "m", "messages": MESSAGES, "id": "inside"}])
    with pytest.raises(InvalidJob, match="is closed"):
        await group.submit(model="m", messages=MESSAGES)
    with pytest.raises(InvalidJob, match="is closed"):
        await group.extend(rows(2))
    assert (await group.submit(model="m", messages=MESSAGES, id="inside")).id == "inside"


async def test_cancelling_a_group(queue: PromptQueue, script: Script) -> None:
    gate = Gate()
    script.with_ = gate.holding("never seen")
    group = await queue.submit_many(rows(12))
    assert await group.cancel() == 12
    assert {answer.status async for answer in group.as_completed()} == {"cancelled"}
    assert await group.cancel() == 0


async def test_an_unknown_group(queue: PromptQueue) -> None:
    group = queue.group("nobody-knows")
    assert group.id == "pmg-nobody-knows"
    for ask in (group.progress(), anext(group.as_completed()), anext(group.jobs()), group.cancel()):
        with pytest.raises(UnknownJob, match="pmg-nobody-knows"):
            await ask


async def test_a_result_that_was_deleted_is_reported_as_such(queue: PromptQueue) -> None:
    group = await queue.submit_many(rows(2))
    first, _ = [answer async for answer in group.as_completed()]
    await queue.forget(first.id)
    again = [answer async for answer in group.as_completed()]
    assert [answer.ok for answer in again] == [False, True]
    assert again[0].error is not None and "deleted or has expired" in again[0].error.message


# -- ids of tenants


async def test_another_tenants_id_is_refused(queue: PromptQueue) -> None:
    first = await queue.submit(model="m", messages=MESSAGES, id="ours", tenant="a")
    for tenant in ("b", None):
        with pytest.raises(IdTaken, match="'ours' is the id of another tenant's job"):
            await queue.submit(model="m", messages=MESSAGES, id="ours", tenant=tenant)
    again = await queue.submit(model="m", messages=MESSAGES, id="ours", tenant="a")
    assert (await again.result(timeout_s=10)).id == (await first.result(timeout_s=10)).id
    await queue.submit(model="m", messages=MESSAGES, id="nobodys")
    with pytest.raises(IdTaken):
        await queue.submit(model="m", messages=MESSAGES, id="nobodys", tenant="a")


async def test_a_row_with_another_tenants_id_is_named_and_others_run(queue: PromptQueue) -> None:
    await queue.submit(model="m", messages=MESSAGES, id="taken", tenant="a")
    ours = [{"model": "m", "messages": MESSAGES, "id": f"row-{number}", "tenant": "b"} for number in range(300)]
    ours[270]["id"] = "taken"
    with pytest.raises(IdTaken, match="row 270: id: 'taken'") as caught:
        await queue.submit_many(ours)
    [note] = caught.value.__notes__
    group = queue.group(note.split()[1].rstrip(":"))
    assert len([answer async for answer in group.as_completed()]) == 270
    assert await queue.job("row-271").status() == "unknown"


async def test_an_id_of_two_tenants_in_one_call_is_refused(queue: PromptQueue) -> None:
    two = [{"model": "m", "messages": MESSAGES, "id": "same", "tenant": tenant} for tenant in ("a", "b")]
    with pytest.raises(IdTaken, match="row 1: "):
        await queue.submit_many(two)


async def test_a_refused_id_does_not_harm_concurrent_submits(queue: PromptQueue) -> None:
    await queue.submit(model="m", messages=MESSAGES, id="taken", tenant="a")
    ids = ["one", "taken", "two", "three"]
    submitting = [queue.submit(model="m", messages=MESSAGES, id=job_id, tenant="b") for job_id in ids]
    outcomes = await asyncio.gather(*submitting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Job, IdTaken, Job, Job]
    for job_id in ("one", "two", "three"):
        assert (await queue.job(job_id).result(timeout_s=10)).ok


@pytest.mark.parametrize("group_id", ["a:jobs", "pmg-a:done", "2026:11"])
async def test_a_group_id_has_no_colon(queue: PromptQueue, group_id: str) -> None:
    """`pm:group:pmg-a:jobs` is the list of the group pmg-a."""
    for make in (queue.group, queue.new_group, queue.sync.group):
        with pytest.raises(InvalidJob, match="colon"):
            make(group_id)


async def test_a_models_name_is_bounded_before_it_is_compared(queue: PromptQueue) -> None:
    since_s = time.thread_time()
    with pytest.raises(InvalidJob, match="model: has 8,000,000 characters"):
        await queue.submit(model="x" * 8_000_000, messages=MESSAGES)
    assert time.thread_time() - since_s < 0.5


# -- the blocking face


def test_sync_a_job(queue: PromptQueue) -> None:
    job = queue.sync.submit(model="m", messages=MESSAGES)
    assert job.result(timeout_s=10).text == "Answer to Hello"
    assert job.status() == "succeeded"
    assert queue.sync.job(job.id).result() == job.result(0)
    assert job.cancel() is False
    queue.sync.forget(job.id)
    assert queue.sync.job(job.id).status() == "unknown"


def test_sync_a_failed_job(queue: PromptQueue, script: Script) -> None:
    script.with_ = lambda body: RateLimited("no")
    with pytest.raises(JobFailed):
        queue.sync.submit(model="m", messages=MESSAGES).result(timeout_s=10)


def test_sync_groups(queue: PromptQueue) -> None:
    group = queue.sync.submit_many(rows(600))
    assert sorted(answer.metadata for answer in group.as_completed()) == list(range(600))
    assert group.progress().finished
    assert len([job.id for job in queue.sync.group(group.id).jobs()]) == 600
    filled = queue.sync.new_group()
    filled.submit(model="m", messages=MESSAGES)
    filled.extend(rows(2))
    assert filled.close() == 3
    assert next(filled.as_completed()).ok
    assert group.cancel() == 0


def test_sync_a_bad_row_is_named(queue: PromptQueue) -> None:
    with pytest.raises(InvalidJob, match="row 260: messages, input: neither"):
        queue.sync.submit_many([*rows(260), {"model": "m"}])


def test_sync_has_the_same_names_and_arguments() -> None:
    own_to_async = {"aclose"}
    own_to_batches = {"completed_batches", "extend_by"}
    for blocking, asynchronous in ((SyncQueue, PromptQueue), (SyncJob, Job), (SyncGroup, Group)):
        promised = {name for name in vars(asynchronous) if not name.startswith("_")}
        promised -= own_to_async | own_to_batches | {"from_env", "sync"}
        for name in promised:
            mirrored = inspect.signature(getattr(blocking, name)).parameters
            original = inspect.signature(getattr(asynchronous, name)).parameters
            keyword_only = any(parameter.kind is parameter.VAR_KEYWORD for parameter in mirrored.values())
            assert keyword_only or list(mirrored) == list(original), f"{blocking.__name__}.{name}"


async def test_sync_refuses_to_block_an_event_loop(queue: PromptQueue) -> None:
    with pytest.raises(RuntimeError, match=r"use `await queue"):
        queue.sync.submit(model="m", messages=MESSAGES)


async def _has_status(job: Job, expected: str) -> bool:
    return await job.status() == expected
