"""The settings of streams, through the composition root."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasks.wire import redis_keys
from workers.celery.app import app
from workers.celery.runtime import current, lifespan
from workers.streams import asked


async def run(*, stream: bool | None = True) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "How many?"}]}
    return await current().handle("chat", "job-1", [], {**body, "promptmill": {"stream": stream}})


def entries(client: Any) -> list[bytes]:
    """The kinds of the stream's entries."""
    return [kind for _, fields in client.xrange(redis_keys.stream("job-1")) for kind in fields]


@pytest.mark.covers("option", "stream")
@pytest.mark.parametrize("stream", [True, None])
async def test_a_job_is_streamed_if_it_says_so(deploy: Any, simulate: Any, client: Any, stream: bool | None) -> None:
    provider = await simulate()
    deploy(provider.url)
    async with lifespan(app):
        assert (await run(stream=stream)).ok
    assert bool(entries(client)) is bool(stream)


async def test_who_asks_is_heard(deploy: Any, simulate: Any, client: Any, wait_until: Any) -> None:
    provider = await simulate()
    deploy(provider.url)
    async with lifespan(app):
        await wait_until(lambda: client.publish(redis_keys.STREAMS_CHANNEL, "job-1"), "the worker listens")
        await wait_until(lambda: "job-1" in asked.jobs, "it has heard")
        assert (await run(stream=None)).ok
        assert "job-1" not in asked.jobs
    assert entries(client)[-1] == b"e"


@pytest.mark.covers("setting", "stream.coalesce_ms")
@pytest.mark.parametrize(("coalesce_ms", "few"), [("1", False), ("1000", True)])
async def test_pieces_travel_together(deploy: Any, simulate: Any, client: Any, coalesce_ms: str, few: bool) -> None:
    provider = await simulate(tokens_per_s=200, output_tokens=60, jitter=0, latency_ms=1)
    deploy(provider.url, STREAM__COALESCE_MS=coalesce_ms)
    async with lifespan(app):
        assert (await run()).ok
    assert (entries(client).count(b"t") <= 3) is few


@pytest.mark.covers("setting", "stream.max_bytes")
async def test_a_stream_takes_no_more_than_it_may(deploy: Any, simulate: Any, client: Any) -> None:
    provider = await simulate()
    deploy(provider.url, STREAM__MAX_BYTES="10")
    async with lifespan(app):
        assert (await run()).ok
    assert (b"f" in entries(client), b"t" in entries(client)) == (True, False)


@pytest.mark.covers("setting", "stream.keep_s")
async def test_a_stream_is_kept_as_long_as_it_is_to(deploy: Any, simulate: Any, client: Any) -> None:
    provider = await simulate()
    deploy(provider.url, STREAM__KEEP_S="60")
    async with lifespan(app):
        assert (await run()).ok
        await asyncio.sleep(0)
    assert 0 < client.ttl(redis_keys.stream("job-1")) <= 60
