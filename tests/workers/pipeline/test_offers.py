"""What this worker can call, and what becomes of a job that it can't."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError

from workers.pipeline.offers import MOST_WITHDRAWN_S, WITHDRAWN_S, Offers, OtherWorkers, with_api
from workers.prompt.job import Options, PromptJob
from workers.prompt.parked import Parked
from workers.providers.keyring import KeyRing

NO_KEY = KeyRing({}, {"p": "P_KEY is not set"})


class Others:
    """Answers as the test says."""

    def __init__(self, *, offered: bool = True) -> None:
        self.is_offered = offered
        self.asked: list[tuple[str, str]] = []

    async def offered(self, alias: str, *, queue: str) -> bool:
        self.asked.append((alias, queue))
        return self.is_offered


class Redis:
    """Says when offers end; each `None` among the replies is an outage."""

    def __init__(self, *replies: dict[str, int] | None, now_s: int = 100) -> None:
        self.replies = list(replies)
        self.now_s = now_s
        self.asked: list[list[str]] = []

    def pipeline(self, *, transaction: bool) -> Redis:
        return self

    async def __aenter__(self) -> Redis:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def time(self) -> None:
        pass

    def zmscore(self, key: str, names: list[str]) -> None:
        assert key == "pm:offers:q"
        self.asked.append(names)

    async def execute(self) -> Any:
        ends = self.replies.pop(0)
        if ends is None:
            raise RedisConnectionError("away")
        return (self.now_s, 0), [ends.get(name) for name in self.asked[-1]]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_job_that_only_this_worker_lacks_is_left_to_others(pipeline_to: Any, chat_job: Any, clock: Any) -> None:
    others = Others()
    async with pipeline_to("http://127.0.0.1:1/v1", keys=NO_KEY, others=others) as pipeline:
        with pytest.raises(Parked) as without_key:
            await pipeline.run(chat_job())
        unknown = PromptJob("job-2", "chat", "elsewhere", {"model": "elsewhere", "messages": ["Hello"]})
        with pytest.raises(Parked):
            await pipeline.run(unknown, queue="q")
    assert without_key.value.until_s == clock.now_s + 1
    assert others.asked == [("m", "prompts"), ("elsewhere", "q")]


@pytest.mark.parametrize("fallbacks", [(), ("m2",)])
async def test_a_kind_that_this_catalogue_lacks_is_left_to_others(pipeline_to: Any, fallbacks: Any) -> None:
    """While workers are started again one by one, some know of an endpoint that the others don't."""
    job = PromptJob("job-r", "respond", "m", {"model": "m", "input": "Hi"}, Options(fallbacks=fallbacks))
    others = Others()
    async with pipeline_to("http://127.0.0.1:1/v1", others=others) as pipeline:
        with pytest.raises(Parked):
            await pipeline.run(job)
        others.is_offered = False
        failed = await pipeline.run(job)
    assert others.asked[0] == (with_api("m", "responses"), "prompts")
    assert failed.error.code == "not_found"
    assert failed.attempts == 0
    if not fallbacks:
        assert 'add "responses" to `apis`' in failed.error.message


async def test_with_nobody_else_it_fails_with_its_reason(pipeline_to: Any, chat_job: Any) -> None:
    async with pipeline_to("http://127.0.0.1:1/v1", keys=NO_KEY, others=Others(offered=False)) as pipeline:
        result = await pipeline.run(chat_job())
    assert (result.error.code, result.error.message) == ("auth", "P_KEY is not set")


async def test_a_job_that_waits_for_the_others_ends_at_its_deadline(
    pipeline_to: Any, chat_job: Any, clock: Any
) -> None:
    class Away(Others):
        async def offered(self, alias: str, *, queue: str) -> bool:
            await asyncio.Event().wait()
            return True

    async with pipeline_to("http://127.0.0.1:1/v1", keys=NO_KEY, others=Away()) as pipeline:
        result = await pipeline.run(chat_job(deadline_at=clock.now_s + 0.05))
    assert (result.status, result.error.code) == ("expired", "expired")


async def test_a_refused_key_is_tried_once_and_jobs_left_to_others(
    pipeline_to: Any, chat_job: Any, simulate: Any, key: str
) -> None:
    simulator = await simulate(api_key="sk-another")
    offers, others = Offers(), Others()
    offers.announce({"p": ["m"]})
    async with pipeline_to(simulator.url, offers=offers, others=others) as pipeline:
        for _ in range(3):
            with pytest.raises(Parked):
                await pipeline.run(chat_job())
        assert simulator.stats()["calls"] == 1
        assert offers.now() == frozenset()
        others.is_offered = False
        result = await pipeline.run(chat_job())
    assert (result.error.code, result.error.http_status) == ("auth", 401)


async def test_of_two_keys_one_must_do(pipeline_to: Any, chat_job: Any, simulate: Any, key: str) -> None:
    simulator = await simulate(api_key=key)
    offers, others = Offers(), Others()
    offers.announce({"p": ["m"]})
    keys = KeyRing({"p": [SecretStr("sk-refused"), SecretStr(key)]})
    async with pipeline_to(simulator.url, offers=offers, others=others, keys=keys) as pipeline:
        results = [await pipeline.run(chat_job()) for _ in range(2)]
    assert [result.ok for result in results] == [False, True]
    assert others.asked == [] and offers.now() == {"m"}


def test_a_withdrawn_provider_is_offered_again_each_time_later() -> None:
    clock = Clock()
    offers = Offers(now=clock)
    offers.announce({"p": ["m"], "q": ["n"]})
    lengths = []
    for _ in range(9):
        offers.withdraw("p")
        offers.withdraw("p")  # the jobs that were in flight with it
        assert offers.is_withdrawn("p") and offers.now() == {"n"}
        until = next(s for s in range(1, 10_000) if _is_offered_after(offers, clock, s))
        lengths.append(until)
        clock.now_s += until
        assert offers.now() == {"m", "n"} and not offers.is_withdrawn("p")
    assert lengths[:3] == [WITHDRAWN_S, 2 * WITHDRAWN_S, 4 * WITHDRAWN_S]
    assert lengths[-1] == MOST_WITHDRAWN_S
    offers.withdraw("p")
    offers.restore("p")
    assert offers.now() == {"m", "n"}


def _is_offered_after(offers: Offers, clock: Clock, delay_s: float) -> bool:
    clock.now_s += delay_s
    offered = "m" in offers.now()
    clock.now_s -= delay_s
    return offered


@pytest.mark.parametrize(
    ("ends", "mine", "expected"),
    [
        ({"m": 100_001}, [], True),
        ({"m": 100_000}, [], False),
        ({"*": 100_001}, [], True),
        ({"m": 100_001}, ["m"], False),
        ({"*": 100_001}, ["*"], False),
        ({"m": 100_001, "*": 100_001}, ["*"], True),
        ({}, [], False),
    ],
)
async def test_only_what_others_offer_counts_and_only_in_time(
    ends: dict[str, int], mine: list[str], expected: bool
) -> None:
    offers = Offers()
    offers.announce({"p": mine})
    redis: Any = Redis(ends)
    assert await OtherWorkers(redis, mine=offers).offered("m", queue="q") is expected


async def test_an_endpoint_is_offered_with_its_model() -> None:
    mine = Offers()
    mine.announce({"p": ["m", with_api("m", "chat"), "*"]})
    redis: Any = Redis({"m": 100_001}, {with_api("m", "responses"): 100_001}, {with_api("*", "responses"): 100_001})
    found = [await OtherWorkers(redis, mine=mine).offered(with_api("m", "responses"), queue="q") for _ in range(3)]
    assert found == [False, True, True]


async def test_a_provider_is_offered_with_all_its_models() -> None:
    aliases = ("openai/gpt-9", "gpt-9", "other/gpt-9")
    redis: Any = Redis(*[{"openai/*": 100_001} for _ in aliases])
    others = OtherWorkers(redis, mine=Offers())
    offered = [await others.offered(alias, queue="q") for alias in aliases]
    assert offered == [True, False, False]


async def test_while_redis_is_away_the_job_waits() -> None:
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    redis: Any = Redis(None, None, {"m": 200_000})
    assert await OtherWorkers(redis, mine=Offers(), sleep=sleep).offered("m", queue="q")
    assert len(slept) == 2


async def test_hundreds_of_jobs_ask_once() -> None:
    redis: Any = Redis({"m": 200_000})
    elsewhere = OtherWorkers(redis, mine=Offers())
    assert all(await asyncio.gather(*(elsewhere.offered("m", queue="q") for _ in range(300))))
