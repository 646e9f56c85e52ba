"""Jobs that end beside the pool's places: on the loop's thread, then on the hub's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from workers.pool.aside import Aside
from workers.pool.handover import CHUNK


class Outbox:
    """Keeps what the hub's thread is to call."""

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def post(self, call: Any) -> None:
        self.posted.append(call)

    def empty(self) -> None:
        while self.posted:
            self.posted.pop(0)()


def aside_on(loop: asyncio.AbstractEventLoop, outbox: Outbox) -> Aside:
    job_loop: Any = SimpleNamespace(call_soon=loop.call_soon_threadsafe)
    return Aside(job_loop, cast("Any", outbox))


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_what_follows_waits_until_the_result_is_stored() -> None:
    loop, outbox, ended = asyncio.get_running_loop(), Outbox(), list[Any]()
    aside, stored = aside_on(loop, outbox), loop.create_future()
    aside.put("tag", lambda: stored, ended.append)
    await turns()
    outbox.empty()
    assert (ended, list(aside.under_way)) == ([], ["tag"])

    stored.set_result(None)
    await turns()
    assert ended == [], "it is for the hub's thread"
    outbox.empty()
    assert (ended, list(aside.under_way)) == ([None], [])


@pytest.mark.parametrize("is_late", [False, True], ids=["raised", "of the future"])
async def test_a_problem_is_handed_over(is_late: bool) -> None:
    loop, outbox, ended = asyncio.get_running_loop(), Outbox(), list[Any]()
    aside, problem = aside_on(loop, outbox), ValueError("not stored")

    def store() -> asyncio.Future[None]:
        if not is_late:
            raise problem
        stored = loop.create_future()
        stored.set_exception(problem)
        return stored

    aside.put("tag", store, ended.append)
    await turns()
    outbox.empty()
    assert (ended, aside.under_way) == ([problem], {})


async def test_many_leave_the_loop_turns_for_others() -> None:
    loop, outbox = asyncio.get_running_loop(), Outbox()
    aside = aside_on(loop, outbox)
    begun, stored = list[int](), loop.create_future()

    def store(number: int) -> asyncio.Future[None]:
        begun.append(number)
        return stored

    for number in range(2 * CHUNK):
        aside.put(str(number), lambda number=number: store(number), lambda problem: None)  # type: ignore[misc]
    await turns(1)
    assert len(begun) == CHUNK
    await turns(3)
    assert begun == list(range(2 * CHUNK))
    stored.set_result(None)
    await turns()
    outbox.empty()
    assert not aside.under_way
