"""When what waits of many answers goes to Redis."""

from __future__ import annotations

from typing import Any

from tasks.wire import redis_keys
from workers.streams import Streams
from workers.streams.writer import ENOUGH

from .conftest import Mill


async def test_a_tick_ends_when_many_have_something_to_say(client: Any, mill: Mill, wait_until: Any) -> None:
    first, last = redis_keys.stream("job-0"), redis_keys.stream(f"job-{ENOUGH - 1}")
    streams = Streams(mill.redis, coalesce_ms=600_000)
    try:
        feeds = [streams.open(f"job-{number}") for number in range(ENOUGH)]
        feeds[0].begin()
        await wait_until(lambda: client.xlen(first) == 1, "what comes alone goes at once")
        feeds[0].write("24 clips")
        for feed in feeds[1:]:
            feed.begin()
        await wait_until(lambda: client.xlen(last) == 1, "the last of enough ends the tick")
        assert client.xlen(first) == 2
    finally:
        await streams.close()
