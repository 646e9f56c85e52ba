"""The memory for large answers: who reads on, who waits, and in what order."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from config.catalog import Timeout
from config.settings import Http as HttpSettings
from workers.http.session import Http
from workers.http.unstored import Share, Unstored
from workers.providers import ProviderRequest, RawResponse

MB = 1024 * 1024


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def share(unstored: Unstored, size: int, ended: list[int]) -> asyncio.Task[Share]:
    async def take() -> Share:
        taken = unstored.open()
        await taken.grow(size)
        ended.append(size)
        return taken

    return asyncio.create_task(take())


async def test_who_finds_no_room_waits_until_some_is_given_back() -> None:
    unstored, ended = Unstored(10), list[int]()
    first, second, third = (share(unstored, size, ended) for size in (6, 5, 1))
    await settled()
    assert ended == [6]  # a small one does not overtake: a large one would never have its turn
    assert unstored.held == 6
    del first
    await settled()
    assert ended == [6, 5, 1]
    del second, third
    await settled()
    assert unstored.held == 0


async def test_one_that_is_larger_than_all_there_is_passes_alone() -> None:
    unstored, ended = Unstored(10), list[int]()
    whole = share(unstored, 100, ended)
    await settled()
    other = share(unstored, 1, ended)
    await settled()
    assert ended == [100]
    del whole
    await settled()
    assert ended == [100, 1]
    await other


async def test_two_that_hold_all_and_need_more_do_not_deadlock() -> None:
    unstored, ended = Unstored(10), list[int]()
    elder, younger = await share(unstored, 5, ended), await share(unstored, 5, ended)
    newcomer = share(unstored, 1, ended)
    grown = asyncio.create_task(younger.grow(8))
    await settled()
    assert not grown.done()
    await elder.grow(8)
    del elder
    await grown
    await settled()
    assert not newcomer.done() or unstored.held <= 10
    del younger, grown
    await newcomer


async def test_who_gives_up_leaves_the_queue() -> None:
    unstored, ended = Unstored(10), list[int]()
    first, second, third = (share(unstored, size, ended) for size in (10, 10, 4))
    await settled()
    second.cancel()
    await settled()
    del first, second
    await third
    assert unstored.held == 4


async def test_large_ones_leave_the_loop_as_long_as_they_took() -> None:
    unstored, pauses = Unstored(1), list[float]()

    async def handle() -> None:
        await unstored.turn()
        pauses.append(time.monotonic())
        while time.monotonic() < pauses[-1] + 0.02:  # as JSON does, it blocks
            pass

    await asyncio.gather(*(handle() for _ in range(4)))
    assert all(later - earlier >= 0.035 for earlier, later in itertools.pairwise(pauses))


@pytest.mark.covers("setting", "http.max_unstored_bytes")
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length known", "length unknown"])
async def test_bodies_are_read_as_far_as_there_is_room(raw_server: Any, reply: Any, is_chunked: bool) -> None:
    body = b"x" * (3 * MB)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = await raw_server(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else reply(200, body))
    timeout = Timeout(total_s=0.8, connect_s=2, read_s=0.5)
    async with Http(HttpSettings(max_unstored_bytes=4 * MB)) as http:

        async def read() -> RawResponse:
            return await http.post(ProviderRequest(server.url, {}, b"{}"), timeout=timeout)

        first = await read()
        waiting = asyncio.create_task(read())
        # For longer than the provider is given: it is not late, we are.
        done, _ = await asyncio.wait([waiting], timeout=1.0)
        assert not done and server.connections == 2
        assert first.body == body
        del first
        assert (await waiting).body == body
