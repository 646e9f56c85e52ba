from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from types import ModuleType

import httpx
import pytest
import redis.asyncio

from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async
from tests.tasks.harness import FakeWorker, Gate
from workers.streams import Streams


@pytest.fixture
async def http(example: Callable[[str], ModuleType]) -> AsyncIterator[httpx.AsyncClient]:
    app = example("fastapi_app").app
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        yield http


@pytest.mark.usefixtures("worker")
async def test_ask_and_wait(http: httpx.AsyncClient) -> None:
    reply = await http.post("/ask", json={"question": "why?"})
    assert (reply.status_code, reply.json()["answer"]) == (200, "An answer to: why?")


@pytest.mark.usefixtures("worker")
async def test_ask_and_look_later(http: httpx.AsyncClient) -> None:
    reply = await http.post("/jobs", json={"question": "why?"})
    job_id = reply.json()["id"]
    assert reply.status_code == 202

    async def answered() -> bool:
        return bool((await http.get(f"/jobs/{job_id}")).json()["answer"])

    await wait_until_async(answered, description="the answer")
    assert (await http.get(f"/jobs/{job_id}")).json()["status"] == "succeeded"


async def test_the_answer_as_it_comes(http: httpx.AsyncClient, redis_server: RedisServer) -> None:
    gate = Gate()
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        with FakeWorker(redis_server.url, gate.holding("An answer")):
            job_id = (await http.post("/jobs", json={"question": "why?", "stream": True})).json()["id"]
            streams = Streams(client)
            feed = streams.open(job_id)
            feed.begin()
            feed.write("An ")
            await wait_until_async(lambda: client.xlen(f"pm:stream:{job_id}"), "it is written")
            watching = asyncio.create_task(http.get(f"/jobs/{job_id}/events"))
            feed.write("ans")
            await streams.end(feed, "An answer")
            gate.open()
            told = (await watching).text
            again = (await http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "3"})).text
        await streams.close()
    assert texts(told) == "An answer"
    assert re.findall("event: (.*)", told)[0::20] == ["started"]
    assert told.endswith('event: end\ndata: ""\n\n')
    assert texts(again) == "answer"


def texts(told: str) -> str:
    return "".join(json.loads(data) for data in re.findall("event: text\ndata: (.*)", told))


@pytest.mark.usefixtures("worker")
async def test_failures_have_their_status_codes(http: httpx.AsyncClient) -> None:
    reply = await http.post("/ask", json={"question": "fail"})
    assert (reply.status_code, reply.json()) == (502, {"error": "rate_limited: too many requests"})
    assert (await http.get("/jobs/nobody-knows")).status_code == 404


async def test_an_unreachable_queue_is_503(
    example: Callable[[str], ModuleType], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://127.0.0.1:1/0")
    app = example("fastapi_app").app
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        reply = await http.post("/jobs", json={"question": "why?"})
    assert reply.status_code == 503
    assert "can't be reached" in reply.json()["error"]


async def test_waiting_too_long_is_504(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastapi_app  # type: ignore[import-not-found]  # as the fixture loaded it

    monkeypatch.setattr(fastapi_app, "WAIT_S", 0.05)
    assert (await http.post("/ask", json={"question": "nobody answers"})).status_code == 504
