"""Tasks without a worker: direct calls and Celery's eager mode, with and without a running loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from celery import chain, current_task

from workers.pool.app import App
from workers.pool.greenlets import wait
from workers.pool.threads import offload

app = App("eager", set_as_current=False)
app.conf.update(task_always_eager=True, task_eager_propagates=False, result_backend="cache+memory://")


@app.task(name="double")
async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


@app.task(name="increment")
def increment(n: int) -> int:
    return n + 1


@app.task(name="broken", bind=True)
async def broken(self: Any) -> None:
    await asyncio.sleep(0)
    raise ValueError(self.request.id)


@app.task(name="again", bind=True, max_retries=3, default_retry_delay=0)
async def again(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry()
    return int(self.request.retries)


@app.task(name="identity", bind=True)
async def identity(self: Any) -> list[Any]:
    await asyncio.sleep(0)
    return [self.request.id, current_task.request.id, self.request.is_eager]


@app.task(name="outer")
async def outer(n: int) -> int:
    return int(await double(n) + increment(n))


async def test_a_direct_call_returns_the_coroutine() -> None:
    assert await double(4) == 8
    assert increment(4) == 5
    assert await outer(4) == 13


def test_apply_runs_a_coroutine_to_its_end() -> None:
    assert double.apply((4,)).get() == 8
    assert outer.apply((4,)).get() == 13


async def test_apply_works_inside_a_running_loop() -> None:
    assert double.apply((4,)).get() == 8
    assert increment.apply((4,)).get() == 5


@pytest.mark.parametrize("task", [double, increment], ids=["async", "def"])
def test_always_eager(task: Any) -> None:
    assert task.delay(4).get() == task.apply_async((4,)).get() == {"double": 8, "increment": 5}[task.name]


def test_an_eager_chain() -> None:
    assert chain(double.s(1), increment.s(), double.s()).apply_async().get() == 6


def test_eager_failure_and_retry() -> None:
    failed = broken.apply(task_id="the-id")
    assert (failed.state, str(failed.result)) == ("FAILURE", "the-id")
    assert again.apply().get() == 2


def test_the_eager_request() -> None:
    assert identity.apply(task_id="the-id").get() == ["the-id", "the-id", True]


def test_wait_outside_a_job_says_so() -> None:
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="outside a job"):
        wait(coroutine)


def test_offload_outside_a_job_calls_at_once() -> None:
    assert offload(divmod, 7, 2) == (3, 1)
