"""Time-outs and cancellations hold even where something inside swallows one."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress

import pytest

from tasks.redis.cancellation import stop, within


async def swallowing(times: int) -> str:
    """What `asyncio.wait_for` of Python 3.11 does now and then."""
    for _ in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    await asyncio.Event().wait()
    return "never"


async def test_a_time_out_that_is_swallowed_comes_again() -> None:
    with pytest.raises(TimeoutError), within(0.01):
        await swallowing(times=2)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


@pytest.mark.parametrize("turns", [1, 10])
async def test_a_busy_loop_reads_what_has_come_before_it_gives_up(turns: int) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)

    async def read() -> bytes:
        with within(0.1, turns=turns):
            theirs.send(b"x")
            time.sleep(0.3)  # as a loop with too much to do
            return await reader.read(1)

    with theirs:
        if turns == 1:
            with pytest.raises(TimeoutError):
                await read()
        else:
            assert await read() == b"x"
        writer.close()
        await writer.wait_closed()


async def test_in_time_nothing_happens() -> None:
    with within(30):
        await asyncio.sleep(0)
    with pytest.raises(LookupError), within(30):
        raise LookupError


async def test_a_cancellation_from_outside_is_not_a_time_out() -> None:
    async def wait() -> None:
        with within(30):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_was_swallowed_is_raised_at_the_end() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        with within(30):
            entered.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_time_outs_nest() -> None:
    with pytest.raises(TimeoutError), within(0.01), within(30):
        await asyncio.Event().wait()
    with within(30), pytest.raises(TimeoutError), within(0.01):
        await asyncio.Event().wait()


async def test_stopping_insists() -> None:
    async def stubborn() -> None:
        await swallowing(times=1)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await stop(task)
    assert task.cancelled()
    await stop()
