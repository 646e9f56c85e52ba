"""A provider that can't be reached: its jobs wait, and lose nothing by it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from workers.breaker import outage
from workers.pipeline.rungs import breaker
from workers.prompt.parked import Parked

COMPLETION = json.dumps({"choices": [{"message": {"role": "assistant", "content": "here"}}]}).encode()
NOWHERE = "http://provider.invalid/v1"


@pytest.fixture
def port() -> Iterator[int]:
    """Nobody listens there, and nobody else gets it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses in hundredths of a second."""
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(outage, "LONGEST_UNREACHABLE_S", 0.2)
    monkeypatch.setattr(breaker, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(breaker, "LEAST_WAIT_S", 0.01)


# -- jobs


@pytest.mark.promise(48)
@pytest.mark.usefixtures("hurried")
async def test_row_48_no_job_fails_by_a_short_outage(
    pipeline_to: Any, chat_job: Any, simulate: Any, port: int, wait_until: Any
) -> None:
    async with pipeline_to(f"http://127.0.0.1:{port}/v1", real_time=True) as line:
        jobs = [asyncio.create_task(line.run(chat_job(f"job-{n}"))) for n in range(60)]
        known = line.breakers.health("p", "upstream-m")
        await wait_until(lambda: [each.pause_s for each in known.outages] == [0.2], description="pauses grow")
        assert not any(job.done() for job in jobs)
        simulator = await simulate(port=port)
        results = await asyncio.gather(*jobs)
    assert {(result.status, result.attempts, result.failed_attempts) for result in results} == {("succeeded", 1, ())}
    assert simulator.stats()["calls"] == 60
    assert not line.breakers.outages


@pytest.mark.usefixtures("hurried")
async def test_those_that_wait_go_when_one_has_a_connection(
    pipeline_to: Any, chat_job: Any, port: int, simulate: Any, wait_until: Any
) -> None:
    async with pipeline_to(f"http://127.0.0.1:{port}/v1", real_time=True) as line:
        jobs = [asyncio.create_task(line.run(chat_job(f"job-{n}"))) for n in range(10)]
        await wait_until(lambda: line.breakers.outages, description="the first connection is refused")
        simulator = await simulate("hang", port=port)
        await wait_until(lambda: simulator.stats()["in_flight"] == 10, description="all have been sent")
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


async def test_without_a_deadline_a_job_waits_for_its_patience(
    pipeline_to: Any, chat_job: Any, clock: Any, port: int, free_limits: Any
) -> None:
    began_at = clock.now_s
    async with pipeline_to(f"http://127.0.0.1:{port}/v1", patience_s=100.0, limits=free_limits) as line:
        result = await line.run(chat_job(max_attempts=1))
    assert (result.status, result.error.code, result.attempts) == ("failed", "connection", 0)
    assert result.error.retryable
    assert f"127.0.0.1:{port}" in result.error.message and "PROMPTMILL_BREAKER__PATIENCE_S" in result.error.message
    assert 100.0 <= clock.now_s - began_at < 132.0
    assert set(free_limits.settled) == {"given back"}
    assert not result.suspected_double_payment


async def test_a_host_that_dns_does_not_know_is_waited_for_too(pipeline_to: Any, chat_job: Any, clock: Any) -> None:
    async with pipeline_to(NOWHERE, patience_s=10.0) as line:
        result = await line.run(chat_job())
    assert (result.error.code, result.attempts) == ("connection", 0)
    assert "provider.invalid" in result.error.message


async def test_a_proxy_that_is_away_is_waited_for_too(pipeline_to: Any, chat_job: Any, port: int, clock: Any) -> None:
    async with pipeline_to(NOWHERE, patience_s=10.0, http={"proxy": f"http://127.0.0.1:{port}"}) as line:
        result = await line.run(chat_job())
    assert (result.error.code, result.attempts) == ("connection", 0)
    assert "proxy" in result.error.message


async def test_a_job_that_was_parked_has_waited_since_its_submission(
    pipeline_to: Any, chat_job: Any, clock: Any, port: int
) -> None:
    async with pipeline_to(f"http://127.0.0.1:{port}/v1", patience_s=100.0, park_after_s=5.0) as line:
        submitted_at, rounds = clock.now_s, 0
        while True:
            rounds += 1
            try:
                result = await line.run(chat_job(submitted_at=submitted_at))
            except Parked as parked:
                clock.now_s = parked.until_s
            else:
                break
    assert (result.error.code, clock.now_s - submitted_at >= 100.0) == ("connection", True)
    assert rounds > 2


async def test_with_a_deadline_a_job_waits_until_then(pipeline_to: Any, chat_job: Any, clock: Any, port: int) -> None:
    began_at = clock.now_s
    async with pipeline_to(f"http://127.0.0.1:{port}/v1", patience_s=10.0, park_after_s=60.0) as line:
        result = await line.run(chat_job(deadline_at=began_at + 200.0))
    assert (result.status, result.error.code, result.attempts) == ("expired", "expired", 0)
    assert "could not be reached" in result.error.message and str(port) in result.error.message
    assert 200.0 <= clock.now_s - began_at < 202.0


async def test_a_far_try_parks_a_job(pipeline_to: Any, chat_job: Any, clock: Any, port: int) -> None:
    async with pipeline_to(f"http://127.0.0.1:{port}/v1", park_after_s=5.0) as line:
        with pytest.raises(Parked) as parked:
            await line.run(chat_job())
    assert parked.value.until_s > clock.now_s + 5.0
    assert parked.value.gap_s > 0.0, "or each of those behind it would be started to be told the same"


async def test_a_job_that_is_parked_after_an_attempt_remembers_it(
    pipeline_to: Any, chat_job: Any, clock: Any, simulate: Any
) -> None:
    simulator = await simulate("500")
    clock.sleep = stop_first(simulator, clock.sleep)
    async with pipeline_to(simulator.url, park_after_s=5.0, patience_s=60.0) as line:
        began_at = clock.now_s
        with pytest.raises(Parked) as parked:
            await line.run(chat_job(submitted_at=began_at))
        clock.now_s += 100.0
        result = await line.run(chat_job(submitted_at=began_at), parked=parked.value.memory)
    assert (result.error.code, result.attempts) == ("connection", 1)
    assert [attempt.code for attempt in result.failed_attempts] == ["server_error"]


def stop_first(simulator: Any, slept: Any) -> Any:
    stopped: list[bool] = []

    async def sleep(delay_s: float) -> None:
        if not stopped:
            stopped.append(True)
            await simulator.stop()
        await slept(delay_s)

    return sleep


async def test_the_log_names_the_host_once_for_each_pause(
    pipeline_to: Any, chat_job: Any, clock: Any, port: int, caplog: Any, key: str, prompt: str
) -> None:
    with caplog.at_level(logging.INFO):
        async with pipeline_to(f"http://127.0.0.1:{port}/v1", patience_s=20.0) as line:
            await line.run(chat_job())
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split()[-2] for line in lines] == ["1", "2", "4", "8", "16"]
    assert all(f"127.0.0.1:{port}" in line for line in lines)
    assert key not in caplog.text and prompt not in caplog.text


async def test_a_call_in_doubt_is_remembered_through_an_outage(
    pipeline_to: Any, chat_job: Any, simulate: Any, hurried: None
) -> None:
    """A server reads the second request on a connection, and is gone: that was no attempt, and may be paid for."""
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while answered < 2:
            await reader.readuntil(b"\r\n\r\n")
            answered += 1
            if answered == 1:
                await reader.read(65_536)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(COMPLETION), COMPLETION))
        server.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with pipeline_to(url, real_time=True, park_after_s=0.0) as pipeline:
        assert (await pipeline.run(chat_job())).ok
        with pytest.raises(Parked) as parked:
            await pipeline.run(chat_job())
    assert answered == 2
    async with pipeline_to((await simulate()).url, real_time=True) as pipeline:
        result = await pipeline.run(chat_job(), parked=parked.value.memory)
    assert (result.attempts, result.suspected_double_payment) == (1, True)
