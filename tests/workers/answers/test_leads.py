"""Leads of calls for equal prompts: whose they are, and what becomes of them where Redis hears too little, or twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from tasks.redis.script import Script
from tasks.wire import redis_keys
from workers.answers import Answers, Flight, Follow
from workers.answers.scripts import LAND
from workers.prompt.job import PromptJob
from workers.prompt.parked import Parked
from workers.redis.link import Link

from .fleet import BODY, answers_of, ends, submit


async def test_a_job_leads_again_when_its_worker_is_gone(server: Any, client: Any) -> None:
    job = PromptJob("job", "chat", "m", BODY)
    async with Redis.from_url(server.url) as redis, answers_of(redis) as answers, answers_of(redis) as others:

        async def found(at: Answers, *, redelivered: bool) -> Any:
            asked = at.look("0a", job, ttl_s=60, followed=None, redelivered=redelivered)
            assert asked is not None
            return await asked

        assert isinstance(await found(answers, redelivered=False), Flight)
        assert isinstance(await found(others, redelivered=False), Follow), "its worker runs it"
        assert isinstance(await found(others, redelivered=True), Flight)


class Repeating:
    """A link that says everything twice, as redis-py does when a connection breaks before the reply."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def run(self, script: Script, names: Sequence[str], args: Sequence[Any]) -> Any:
        await self._link.run(script, names, args)
        return await self._link.run(script, names, args)

    async def close(self) -> None:
        await self._link.close()


async def test_nothing_changes_where_all_is_said_twice(fleet: Any, client: Any, simulate: Any, wait_until: Any) -> None:
    provider = await simulate(latency_ms=100)
    async with fleet(provider.url) as workers:
        for worker in workers.workers:
            worker.answers._courier._link = Repeating(worker.answers._courier._link)
        submit(workers, 100)
        await wait_until(lambda: len(workers.results) == 100, "all are answered")
    assert (provider.stats()["calls"], ends(workers)) == (1, {("succeeded", False): 1, ("succeeded", True): 99})
    assert not client.keys("pm:flight:*")


class Lossy:
    """A link to a Redis that does not hear how some calls end: those whose stored bytes `loses` says so of."""

    def __init__(self, link: Link, loses: Callable[[int], bool]) -> None:
        self._link = link
        self.loses = loses
        self.lost = 0

    async def run(self, script: Script, names: Sequence[str], args: Sequence[Any]) -> Any:
        if script is LAND and self.loses(len(args[1])):
            self.lost += 1
            raise TimeoutError
        return await self._link.run(script, names, args)

    async def close(self) -> None:
        await self._link.close()


async def test_nobody_calls_again_before_an_end_is_said(
    fleet: Any, client: Any, simulate: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that could not be said outlasts the lead's lease, and those that look meanwhile wait for it."""
    monkeypatch.setattr("workers.answers.answers.BEAT_S", 0.05)
    monkeypatch.setattr("workers.answers.courier.LEASE_MS", 500)
    monkeypatch.setattr("workers.answers.courier.AWAY_S", 0.0)
    provider = await simulate()
    async with fleet(provider.url) as workers:
        links = []
        for worker in workers.workers:
            links.append(Lossy(worker.answers._courier._link, lambda stored_bytes: True))
            worker.answers._courier._link = links[-1]
        workers.submit("first", BODY)
        await wait_until(lambda: workers.results, "it is answered")
        (flight,) = client.keys("pm:flight:*")
        ends_ms = float(client.hget(flight, "ends"))
        await wait_until(lambda: time.time() * 1000 > ends_ms + 500, "its lease has passed")
        assert sum(link.lost for link in links) > 2, "it is said again and again"
        (idle,) = [each for each in workers.workers if not each.results]
        (busy,) = [each for each in workers.workers if each.results]
        busy.stop()
        workers.submit("second", BODY)
        await wait_until(lambda: idle.parked or idle.results, "the other worker has looked it up")
        for link in links:
            link.loses = lambda stored_bytes: False
        await wait_until(lambda: len(workers.results) == 2, "both are answered")
    assert workers.results["second"].cached
    assert provider.stats()["calls"] == 1


async def test_what_is_too_much_at_once_is_said_in_parts(
    fleet: Any, client: Any, simulate: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.answers.answers.BEAT_S", 0.05)
    monkeypatch.setattr("workers.answers.courier.AWAY_S", 0.0)
    provider = await simulate(latency_ms=100)
    async with fleet(provider.url, size=1) as workers:
        (worker,) = workers.workers
        worker.answers._courier._link = Lossy(worker.answers._courier._link, lambda stored_bytes: stored_bytes > 5_000)
        for number in range(40):
            workers.submit(f"job-{number}", {**BODY, "messages": [{"role": "user", "content": f"{number}?"}]})
        await wait_until(lambda: len(client.keys("pm:answer:*")) == 40, "all answers are stored")
        await wait_until(lambda: not worker.answers._courier.leads, "all ends are said")
    assert provider.stats()["calls"] == 40


async def test_a_parked_lead_is_not_cut_to_a_lease(client: Any, server: Any, wait_until: Any) -> None:
    """The beat that was under way when its job was parked comes after that was said."""
    async with Redis.from_url(server.url) as redis, answers_of(redis) as answers:
        asked = answers.look("0a", PromptJob("parked", "chat", "m", BODY), ttl_s=60, followed=None)
        assert asked is not None
        flight = await asked
        assert isinstance(flight, Flight)
        flight.parked(Parked(time.time() + 600, "its limit's turn is far away"))
        courier = answers._courier
        await wait_until(lambda: not courier.leads, "it is said")
        courier.leads[flight.number] = flight
        await courier.renew()
    assert float(client.hget(redis_keys.flight("0a"), "ends")) > (time.time() + 600) * 1000
