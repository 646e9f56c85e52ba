"""The next model, where another may cure what this one can't: by what the providers have seen."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from pydantic import SecretStr

from config.catalog import Catalog
from tasks.results import Usage
from workers.limiter import TooLargeForLimit, TooLate
from workers.pipeline.retry_policy import RetryPolicy
from workers.pipeline.trip import Trip
from workers.prompt.job import Options, PromptJob
from workers.prompt.parked import Parked
from workers.providers import Answer
from workers.providers.keyring import KeyRing
from workers.telemetry.counts import counts

KEYS = KeyRing({name: [SecretStr("sk-canary-77aa")] for name in ("a", "b", "c")})


def price(input_usd: float, output_usd: float) -> dict[str, Any]:
    return {"input": input_usd, "output": output_usd, "date": "2026-01-01", "source": "a test"}


def catalog(urls: dict[str, str], *, routes: Any = None, **models: dict[str, Any]) -> Catalog:
    """A provider for each name, with one model of the same name; `models` are further keys of theirs."""
    return Catalog.model_validate(
        {
            "providers": {name: {"base_url": url, "api_keys": ["KEY"]} for name, url in urls.items()},
            "models": {name: {"provider": name, **models.get(name, {})} for name in urls},
            "routes": routes or {},
        }
    )


def job(model: str = "a", *, body: dict[str, Any] | None = None, **options: Any) -> PromptJob:
    prompt = {"model": model, "messages": [{"role": "user", "content": "how many clips?"}], **(body or {})}
    return PromptJob("job-1", "chat", model, prompt, Options(**options))


@pytest.fixture
def two(pipeline_to: Any, simulate: Any) -> Any:
    """`async with two("500") as (pipeline, a, b)`: `a` has the fault on each call, `b` answers."""

    class Two:
        def __init__(self, fault: str | None, *, of_b: str | None = None, models: Any = None, **pipeline: Any) -> None:
            self.fault, self.of_b, self.models, self.options = fault, of_b, models or {}, pipeline

        async def __aenter__(self) -> Any:
            a, b = await simulate(self.fault), await simulate(self.of_b)
            models = {"a": {"fallbacks": ["b"]}, **self.models}
            self.made = pipeline_to("", catalog=catalog({"a": a.url, "b": b.url}, **models), keys=KEYS, **self.options)
            return await self.made.__aenter__(), a, b

        async def __aexit__(self, *error: Any) -> None:
            await self.made.__aexit__(*error)

    return Two


def calls(*simulators: Any) -> list[int]:
    return [simulator.stats()["calls"] for simulator in simulators]


# -- what leads to the next model


@pytest.mark.covers("catalog", "models.fallbacks")
@pytest.mark.parametrize(
    ("fault", "code", "of_a"),
    [
        ("500", "server_error", 3),
        ("503-html", "server_error", 3),
        ("429", "rate_limited", 3),
        ("empty", "bad_response", 3),
        ("reset", "connection", 3),
        ("quota", "quota_exhausted", 1),
        ("404", "not_found", 1),
    ],
)
async def test_what_another_model_can_cure(two: Any, fault: str, code: str, of_a: int) -> None:
    async with two(fault) as (pipeline, a, b):
        result = await pipeline.run(job())
    assert (result.status, result.answered_by, result.model) == ("succeeded", "b/b", "a")
    assert calls(a, b) == [of_a, 1], "one of the four attempts was left to b"
    assert [attempt.code for attempt in result.failed_attempts] == [code] * of_a
    assert result.attempts == of_a + 1
    assert counts.take()[f"fallbacks_total:{code}"] == 1


async def test_after_a_time_out_another_model_is_asked(two: Any) -> None:
    async with two("hang", models={"a": {"fallbacks": ["b"], "timeout": {"total_s": 0.3}}}) as (pipeline, a, b):
        result = await pipeline.run(job())
    assert (result.answered_by, calls(a, b)) == ("b/b", [1, 1])
    assert result.suspected_double_payment, "what timed out may have been paid for"


@pytest.mark.parametrize("fault", ["400", "401", "403", "content-filter", "context"])
async def test_what_another_model_is_not_asked_for(two: Any, fault: str) -> None:
    async with two(fault) as (pipeline, a, b):
        result = await pipeline.run(job())
    assert (result.status, calls(a, b)) == ("failed", [1, 0])


@pytest.mark.covers("option", "fallback_on")
@pytest.mark.parametrize(
    ("fault", "trigger"), [("401", "auth"), ("403", "permission"), ("content-filter", "content_filter")]
)
async def test_the_job_names_what_leads_on_besides(two: Any, fault: str, trigger: Any) -> None:
    async with two(fault) as (pipeline, a, b):
        result = await pipeline.run(job(fallback_on=[trigger]))
    assert (result.answered_by, calls(a, b)) == ("b/b", [1, 1])


@pytest.mark.covers("catalog", "models.fallback_on")
async def test_the_model_names_it_unless_the_job_does(two: Any) -> None:
    models = {"a": {"fallbacks": ["b"], "fallback_on": ["content_filter"]}}
    async with two("content-filter", models=models) as (pipeline, a, b):
        assert (await pipeline.run(job())).answered_by == "b/b"
        assert (await pipeline.run(job(fallback_on=[]))).error.code == "content_filter"
        assert calls(a, b) == [2, 1]


@pytest.mark.covers("catalog", "models.context_tokens")
@pytest.mark.parametrize(
    ("of_a", "of_b", "answers"),
    [(8_000, 128_000, True), (8_000, 8_000, False), (None, 128_000, True), (8_000, None, False)],
)
async def test_a_longer_context_is_asked_for_a_longer_prompt(two: Any, of_a: Any, of_b: Any, answers: bool) -> None:
    models = {"a": {"fallbacks": ["b"], "context_tokens": of_a}, "b": {"context_tokens": of_b}}
    async with two("context", models=models) as (pipeline, a, b):
        result = await pipeline.run(job())
    assert (result.ok, calls(a, b)) == (answers, [1, int(answers)])
    assert answers or result.error.code == "too_large"


@pytest.mark.covers("option", "fallbacks")
async def test_the_jobs_own_list_goes_before_the_catalogues(pipeline_to: Any, simulate: Any) -> None:
    a, b, c = await simulate("404"), await simulate(), await simulate()
    made = catalog({"a": a.url, "b": b.url, "c": c.url}, a={"fallbacks": ["b"]})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        assert (await pipeline.run(job(fallbacks=["c"]))).answered_by == "c/c"
        assert (await pipeline.run(job(fallbacks=[]))).error.code == "not_found"
        assert (await pipeline.run(job("b", fallbacks=["a"]))).answered_by == "b/b"
        assert calls(a, b, c) == [2, 1, 1]
        assert (await pipeline.run(job("a/a"))).answered_by == "b/b", "the same model by its provider's name"


async def test_fallbacks_of_a_fallback_play_no_part(two: Any) -> None:
    models = {"a": {"fallbacks": ["b"]}, "b": {"fallbacks": ["a"]}}
    async with two("404", of_b="404", models=models) as (pipeline, a, b):
        result = await pipeline.run(job())
    assert (result.error.code, calls(a, b)) == ("not_found", [1, 1])


async def test_a_fallback_without_words_for_the_request_is_passed_over(pipeline_to: Any, simulate: Any) -> None:
    a, c = await simulate("404"), await simulate()
    made = catalog({"a": a.url, "b": "http://127.0.0.1:1/v1", "c": c.url}, a={"fallbacks": ["b", "c"]})
    made.providers["b"] = made.providers["b"].model_copy(update={"kind": "anthropic"})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(job(body={"n": 2}))
    assert (result.answered_by, result.attempts) == ("c/c", 2)


# -- attempts, prices and reasons


async def test_the_result_names_each_attempt_price_and_reason(
    pipeline_to: Any, raw_server: Any, simulate: Any, reply: Any
) -> None:
    broken_off = {
        "choices": [{"message": {"content": "half"}, "finish_reason": "error"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 10},
    }
    whole = {
        "choices": [{"message": {"content": "24"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 50},
    }
    a = await raw_server(*[reply(200, json.dumps(broken_off).encode())] * 2)
    b = await raw_server(reply(503, b"{}"))
    c = await raw_server(reply(200, json.dumps(whole).encode()))
    made = catalog(
        {"a": a.url, "b": b.url, "c": c.url},
        a={"fallbacks": ["b", "c"], "price": price(1, 10)},
        c={"price": price(3, 30)},
    )
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(job())
    assert [(each.answered_by, each.cost_usd, each.next) for each in result.failed_attempts] == [
        ("a/a", 0.0011, None),
        ("a/a", 0.0011, "b: the provider of a failed"),
        ("b/b", None, "c: the provider of b failed"),
    ]
    assert (result.answered_by, result.attempts, result.usage) == ("c/c", 4, Usage(1_000, 50))
    assert result.cost_usd == pytest.approx(2 * 0.0011 + 0.0045), "each call at the price of its own model"
    assert result.route is None


@pytest.mark.parametrize(("allowed", "expected"), [(1, [1, 0]), (2, [1, 1]), (3, [2, 1]), (None, [3, 1])])
async def test_all_models_share_one_counter_of_attempts(two: Any, allowed: int | None, expected: list[int]) -> None:
    async with two("500", of_b="500") as (pipeline, a, b):
        result = await pipeline.run(job(max_attempts=allowed))
    assert (calls(a, b), result.attempts) == (expected, sum(expected))
    assert ("no attempt is left for b" in result.error.message) == (allowed == 1)


async def test_what_the_first_leaves_over_is_the_lasts(two: Any) -> None:
    async with two("404", of_b="500") as (pipeline, a, b):
        assert (await pipeline.run(job())).attempts == 4
        assert calls(a, b) == [1, 3]


async def test_a_provider_that_is_down_costs_no_job_its_answer(two: Any) -> None:
    async with two("503") as (pipeline, a, b):
        results = await asyncio.gather(*(pipeline.run(job()) for _ in range(200)))
    assert {(result.status, result.answered_by) for result in results} == {("succeeded", "b/b")}
    assert calls(a, b) == [600, 200]


# -- limits and deadlines


async def test_a_limited_model_is_waited_for_while_there_is_time(two: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [Parked(clock.now_s + 60, "the limit is used up")]
    async with two(None, limits=free_limits) as (pipeline, a, b):
        with pytest.raises(Parked):
            await pipeline.run(job())
        assert calls(a, b) == [0, 0]


async def test_a_turn_after_the_deadline_sends_the_job_on(two: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [TooLate("the job's deadline passes before its turn")]
    async with two(None, limits=free_limits) as (pipeline, a, b):
        result = await pipeline.run(job(deadline_at=clock.now_s + 40))
    assert (result.answered_by, result.attempts, calls(a, b)) == ("b/b", 1, [0, 1])
    [passed] = result.failed_attempts
    assert (passed.code, passed.answered_by) == ("rate_limited", "a/a")
    assert passed.next == "b: the limit of a gave no turn in time"
    assert [asked["deadline_at"] - clock.now_s for asked in free_limits.asked] == [20, 40], "b is left half of the time"


async def test_the_last_model_s_turn_after_the_deadline_is_the_end(two: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [TooLate("too late"), TooLate("too late")]
    async with two(None, limits=free_limits) as (pipeline, a, b):
        result = await pipeline.run(job(deadline_at=clock.now_s + 40))
    assert (result.status, result.error.code, calls(a, b)) == ("expired", "expired", [0, 0])


async def test_a_job_in_a_hurry_does_not_wait_for_a_limited_model(two: Any, free_limits: Any, clock: Any) -> None:
    far = Parked(clock.now_s + 60, "the limit is used up for now")
    free_limits.raises = [far]
    async with two(None, limits=free_limits, park_after_s=5.0) as (pipeline, a, b):
        result = await pipeline.run(job(fallback_on=["rate_limited"]))
        assert (result.answered_by, calls(a, b)) == ("b/b", [0, 1])
        free_limits.raises = [far, far]
        with pytest.raises(Parked):  # for the last there is nothing but waiting
            await pipeline.run(job(fallback_on=["rate_limited"]))


async def test_a_request_above_one_models_limit_may_fit_anothers(two: Any, free_limits: Any) -> None:
    free_limits.raises = [TooLargeForLimit("tokens", cost=9_000, limit=100)]
    async with two(None, limits=free_limits) as (pipeline, a, b):
        result = await pipeline.run(job())
    assert (result.answered_by, calls(a, b)) == ("b/b", [0, 1])


async def test_retries_leave_the_next_model_its_time(two: Any, clock: Any) -> None:
    async with two("429", retry=RetryPolicy(max_attempts=20, base_s=10.0)) as (pipeline, _, b):
        result = await pipeline.run(job(deadline_at=clock.now_s + 1))
    assert (result.answered_by, calls(b)) == ("b/b", [1])


async def test_a_deadline_in_mid_call_is_the_end(two: Any) -> None:
    async with two("hang", real_time=True) as (pipeline, a, b):
        result = await pipeline.run(job(deadline_at=time.time() + 0.3))
    assert (result.status, calls(a, b)) == ("expired", [1, 0])


# -- a job that leaves the worker in between


async def test_a_parked_job_comes_back_to_the_model_it_was_at(two: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [None, None, None, Parked(clock.now_s + 60, "far away", gap_s=2.0)]
    async with two("500", limits=free_limits) as (pipeline, a, b):
        with pytest.raises(Parked) as caught:
            await pipeline.run(job())
        assert calls(a, b) == [3, 0]
        assert caught.value.gap_s == 0, "jobs of its lane wait for the limit of a"
        result = await pipeline.run(job(), parked=caught.value.memory)
    assert (result.answered_by, result.attempts, calls(a, b)) == ("b/b", 4, [3, 1])
    assert [each.next for each in result.failed_attempts] == [None, None, "b: the provider of a failed"]


async def test_a_job_that_was_never_called_begins_with_the_first(two: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [TooLate("late"), Parked(clock.now_s + 60, "far away")]
    async with two(None, limits=free_limits) as (pipeline, _, _):
        with pytest.raises(Parked) as caught:
            await pipeline.run(job(deadline_at=clock.now_s + 90))
        assert caught.value.memory is None
        assert (await pipeline.run(job())).answered_by == "a/a"


async def test_parked_at_the_first_a_job_keeps_its_place_in_the_lane(two: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [Parked(clock.now_s + 60, "far away", gap_s=2.0)]
    async with two(None, limits=free_limits) as (pipeline, _, _):
        with pytest.raises(Parked) as caught:
            await pipeline.run(job())
    assert caught.value.gap_s == 2.0


@pytest.mark.parametrize(
    "chain", [{}, {"names": [], "position": 0, "chosen": None}, 7, {"names": ["a"], "position": 9}]
)
async def test_a_chain_that_cannot_be_read_begins_again(two: Any, chain: Any) -> None:
    memory = {"attempts": 1, "postponed": 0, "may_be_paid": False, "paid_twice": False, "failed": [], "chain": chain}
    async with two(None) as (pipeline, _, _):
        assert (await pipeline.run(job(), parked=json.dumps(memory))).answered_by == "a/a"


class Others:
    """Another worker that can call these."""

    def __init__(self, *models: str) -> None:
        self.models = models
        self.asked: list[str] = []

    async def offered(self, alias: str, *, queue: str) -> bool:
        self.asked.append(alias)
        return alias in self.models


async def test_a_model_that_no_worker_can_call_is_passed_over(pipeline_to: Any, simulate: Any) -> None:
    b, others = await simulate(), Others()
    keys = KeyRing({"b": [SecretStr("k")]}, {"a": "set A_KEY"})
    made = catalog({"a": b.url, "b": b.url}, a={"fallbacks": ["b"]})
    async with pipeline_to("", catalog=made, keys=keys, others=others) as pipeline:
        without_key = await pipeline.run(job())
        unknown = await pipeline.run(job("nobody-knows", fallbacks=["b"]))
    assert (without_key.answered_by, unknown.answered_by, calls(b)) == ("b/b", "b/b", [2])
    assert [each.next for each in unknown.failed_attempts] == ["b: no worker can call nobody-knows"]
    assert [(each.code, each.answered_by) for each in without_key.failed_attempts] == [("auth", "a/a")]
    assert others.asked == ["a", "nobody-knows"]


async def test_a_fallback_that_another_worker_can_call_is_left_to_it(pipeline_to: Any, simulate: Any) -> None:
    a, b, others = await simulate("404"), await simulate(), Others("b")
    keys = KeyRing({"a": [SecretStr("k")]}, {"b": "set B_KEY"})
    made = catalog({"a": a.url, "b": b.url}, a={"fallbacks": ["b"]})
    async with pipeline_to("", catalog=made, keys=keys, others=others) as pipeline:
        with pytest.raises(Parked) as caught:
            await pipeline.run(job())
    assert (caught.value.for_others, others.asked) == (True, ["b"])
    async with pipeline_to("", catalog=made, keys=KEYS) as other_worker:
        result = await other_worker.run(job(), parked=caught.value.memory)
    assert (result.answered_by, result.attempts, calls(a, b)) == ("b/b", 2, [1, 1])


async def test_a_route_is_no_fallback(pipeline_to: Any, simulate: Any) -> None:
    a = await simulate()
    made = catalog({"a": a.url}, routes={"auto": {"default": "a"}})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(job("a", fallbacks=["auto"]))
    assert (result.error.code, calls(a)) == ("bad_request", [0])
    assert "'auto' is a route; name models" in result.error.message


async def test_an_answer_that_no_record_holds_is_no_other_models_task(pipeline_to: Any, simulate: Any) -> None:
    a, b = await simulate(), await simulate()
    made = catalog({"a": a.url, "b": b.url}, a={"fallbacks": ["b"]})
    many = PromptJob("job-e", "embed", "a", {"model": "a", "input": ["x"] * 20_000})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(many)
    assert (result.error.code, result.failed_attempts, calls(a, b)) == ("too_large", (), [0, 0])


async def test_an_answer_without_a_call_says_nothing_of_speed(two: Any, clock: Any) -> None:
    async with two(None) as (pipeline, _, _):
        rung, trip = pipeline._fallbacks, Trip(job(), clock.now_s)

        async def stored(trip: Trip) -> Answer:
            return Answer("24", {}, Usage(1, 1))

        await rung(trip, stored)
        assert rung._speeds.latency_s("a", now=clock.now_s) is None
        await pipeline.run(job())
        assert rung._speeds.latency_s("a", now=clock.now_s) is not None
