"""Routes, as jobs meet them: which model is asked, which after it, and what the result says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.results import PromptResult, Usage
from workers.limiter import Cost, Forecast
from workers.pipeline.routing.prices import KNOWN_FOR_S
from workers.pipeline.routing.router import EXPLORE_EVERY
from workers.pipeline.routing.speeds import FRESH_S, Speeds
from workers.prompt.parked import Parked
from workers.providers.keyring import KeyRing

from .test_fallbacks import KEYS, calls, catalog, job, price


@pytest.fixture
def routed(pipeline_to: Any, simulate: Any) -> Any:
    """`async with routed({...}, ...) as (pipeline, a, b)`: the route `auto` over two models that answer."""

    class Routed:
        def __init__(self, route: Any, *, fault: str | None = None, models: Any = None, **pipeline: Any) -> None:
            self.route, self.fault, self.models, self.options = route, fault, models or {}, pipeline

        async def __aenter__(self) -> Any:
            a, b = await simulate(self.fault), await simulate()
            made = catalog({"a": a.url, "b": b.url}, routes={"auto": self.route}, **self.models)
            self.made = pipeline_to("", catalog=made, keys=KEYS, **self.options)
            return await self.made.__aenter__(), a, b

        async def __aexit__(self, *error: Any) -> None:
            await self.made.__aexit__(*error)

    return Routed


HARD = {"when": {"tag": "hard"}, "model": "b"}


@pytest.mark.covers("catalog", "routes.rules", "routes.default")
@pytest.mark.covers("option", "tag")
async def test_a_rule_chooses_and_the_result_says_so(routed: Any) -> None:
    async with routed({"rules": [HARD], "default": "a"}) as (pipeline, _, _):
        hard, other = await pipeline.run(job("auto", tag="hard")), await pipeline.run(job("auto"))
    assert (hard.model, hard.answered_by) == ("auto", "b/b")
    assert hard.route == {"name": "auto", "rule": 1, "why": 'tag = "hard"'}
    assert (other.answered_by, other.route["rule"], other.route["why"]) == ("a/a", None, "default: no rule fits")
    assert PromptResult.from_dict(hard.to_dict()) == hard


@pytest.mark.parametrize(
    ("when", "options"),
    [
        ({"priority": "bulk"}, {"priority": "bulk"}),
        ({"tenant": "acme"}, {"tenant": "acme"}),
        ({"deadline_under_s": 30}, {"deadline_at": 1_000_020.0}),
        ({"input_tokens_over": 1_000}, {"body": {"messages": [{"role": "user", "content": "x" * 8_000}]}}),
    ],
)
async def test_rules_read_the_job(routed: Any, free_limits: Any, when: Any, options: Any) -> None:
    free_limits.estimate = lambda model, *, input_chars, **_: Cost(input_chars // 4)
    async with routed({"rules": [{"when": when, "model": "b"}], "default": "a"}, limits=free_limits) as (run, _, _):
        assert (await run.run(job("auto", **options))).answered_by == "b/b"
        assert (await run.run(job("auto"))).answered_by == "a/a"


@pytest.mark.covers("catalog", "routes.targets")
async def test_the_other_targets_are_the_chain(routed: Any) -> None:
    async with routed({"targets": ["a", "b"]}, fault="404") as (pipeline, a, b):
        result = await pipeline.run(job("auto"))
    assert (result.answered_by, calls(a, b)) == ("b/b", [1, 1])
    assert result.route == {"name": "auto", "rule": None, "why": "first of the list"}


async def test_behind_a_rule_come_its_models_own_fallbacks(routed: Any) -> None:
    route = {"rules": [{"when": {"tag": "x"}, "model": "a"}], "targets": ["b"]}
    async with routed(route, fault="404") as (pipeline, a, b):
        alone = await pipeline.run(job("auto", tag="x"))
    assert (alone.status, calls(a, b)) == ("failed", [1, 0]), "the rule meant a: b may not be what it permits"
    async with routed(route, fault="404", models={"a": {"fallbacks": ["b"]}}) as (pipeline, _, _):
        assert (await pipeline.run(job("auto", tag="x"))).answered_by == "b/b"


async def test_a_jobs_own_fallbacks_stand_behind_what_its_route_chose(routed: Any) -> None:
    async with routed({"targets": ["a", "b"]}, fault="404") as (pipeline, a, b):
        assert (await pipeline.run(job("auto", fallbacks=[]))).error.code == "not_found"
        assert calls(a, b) == [1, 0]


@pytest.mark.covers("catalog", "routes.choose")
async def test_the_cheapest_by_what_answers_take(routed: Any, free_limits: Any, clock: Any) -> None:
    """`b` costs less a token, and writes ten times as many."""
    models = {"a": {"price": price(1, 4)}, "b": {"price": price(1, 2)}}
    route = {"targets": ["a", "b"], "choose": "cheapest"}
    free_limits.forecast = lambda model: Forecast(0.019, (), free_limits.outputs.get(model.name))
    async with routed(route, models=models, limits=free_limits) as (pipeline, _, _):
        result = await pipeline.run(job("auto"))
        assert (result.answered_by, result.route["why"]) == ("b/b", "cheapest: about $0.0015, the next $0.002")
        free_limits.outputs = {"a": 100, "b": 1_000}
        await clock.sleep(KNOWN_FOR_S)
        result = await pipeline.run(job("auto"))
        assert (result.answered_by, result.route["why"]) == ("a/a", "cheapest: about $0.0014, the next $0.003")
        free_limits.waits_s = {"a": 60.0}
        assert (await pipeline.run(job("auto", deadline_at=clock.now_s + 30))).answered_by == "b/b"


async def test_what_comes_from_a_providers_cache_is_cheaper(
    free_limits: Any, pipeline_to: Any, raw_server: Any, reply: Any, clock: Any
) -> None:
    choice = {"message": {"content": "24"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 900}}
    b = await raw_server(reply(200, json.dumps({"choices": [choice], "usage": usage}).encode()))
    made = catalog(
        {"a": "http://127.0.0.1:1/v1", "b": b.url},
        a={"price": price(1, 1)},
        b={"price": {**price(2, 1), "cached_input": 0.2}, "fallbacks": ["a"]},
        routes={"auto": {"targets": ["a", "b"], "choose": "cheapest"}},
    )
    free_limits.outputs = {"a": 0, "b": 0}
    async with pipeline_to("", catalog=made, keys=KEYS, limits=free_limits) as pipeline:
        router = pipeline._fallbacks._chains
        assert router.chain(job("auto")).names == ["a", "b"]
        await pipeline.run(job("b"))
        await clock.sleep(KNOWN_FOR_S)
        assert router.chain(job("auto")).names == ["b", "a"], "0.38 of its price, after 90 % from the cache"


async def test_the_fastest_by_what_was_measured(routed: Any, free_limits: Any, clock: Any) -> None:
    async with routed({"targets": ["a", "b"], "choose": "fastest"}, limits=free_limits) as (pipeline, _, _):
        first = await pipeline.run(job("auto"))
        assert first.answered_by == "a/a"
        assert first.route["why"] == "fastest: no latency is known yet, so the list's order"
        speeds = pipeline._fallbacks._speeds
        speeds.note("a", latency_s=3.0, usage=None, now=clock.now_s)
        speeds.note("b", latency_s=0.2, usage=None, now=clock.now_s)
        second = await pipeline.run(job("auto"))
        assert (second.answered_by, second.route["why"]) == ("b/b", "fastest: answers in about 0.2 s")
        free_limits.waits_s = {"b": 9.0}
        assert (await pipeline.run(job("auto"))).answered_by == "a/a", "the limit's wait counts too"


@pytest.mark.parametrize(("fault", "first"), [("500", "b"), ("404", "a")])
async def test_a_target_whose_provider_failed_is_not_fast(routed: Any, clock: Any, fault: str, first: str) -> None:
    async with routed({"targets": ["a", "b"], "choose": "fastest"}, fault=fault) as (pipeline, _, _):
        pipeline._fallbacks._speeds.note("a", latency_s=0.1, usage=None, now=clock.now_s)
        assert (await pipeline.run(job("auto"))).answered_by == "b/b"
        pipeline._fallbacks._speeds.note("b", latency_s=9.0, usage=None, now=clock.now_s)
        assert pipeline._fallbacks._chains.chain(job("auto")).names[0] == first


async def test_a_target_that_nobody_asks_is_measured_now_and_then(routed: Any) -> None:
    async with routed({"targets": ["a", "b"], "choose": "fastest"}) as (pipeline, a, b):
        results = [await pipeline.run(job("auto")) for _ in range(2 * EXPLORE_EVERY)]
    assert calls(b)[0] > 0 and "a target of unknown latency" in results[EXPLORE_EVERY - 1].route["why"]
    assert sum(calls(a, b)) == 2 * EXPLORE_EVERY


async def test_a_parked_job_keeps_what_its_route_chose(routed: Any, free_limits: Any, clock: Any) -> None:
    free_limits.raises = [None, Parked(clock.now_s + 60, "far away", gap_s=3.0)]
    route = {"rules": [{"when": {"deadline_under_s": 50}, "model": "a"}], "default": "b"}
    async with routed(route, fault="500", limits=free_limits) as (pipeline, a, b):
        with pytest.raises(Parked) as caught:
            await pipeline.run(job("auto", deadline_at=clock.now_s + 49))
        assert caught.value.gap_s == 0, "another job of the route may go elsewhere"
        result = await pipeline.run(job("auto"), parked=caught.value.memory)
    assert (result.error.code, result.route["rule"], calls(a, b)) == ("server_error", 1, [4, 0])


async def test_a_route_none_of_whose_models_has_a_key_says_why(pipeline_to: Any) -> None:
    url = "http://127.0.0.1:1/v1"
    keys = KeyRing({"c": [SecretStr("k")]}, {"a": "set A_KEY", "b": "set B_KEY"})
    made = catalog({"a": url, "b": url, "c": url}, routes={"auto": {"targets": ["a", "b"], "choose": "fastest"}})
    async with pipeline_to("", catalog=made, keys=keys) as pipeline:
        result = await pipeline.run(job("auto"))
    assert (result.error.code, result.error.message, result.attempts) == ("auth", "set B_KEY", 0)


# -- how fast models are


def test_latencies_are_moving_means_that_grow_old() -> None:
    speeds = Speeds()
    assert speeds.latency_s("m", now=0.0) is None
    for latency_s in (1.0, 2.0):
        speeds.note("m", latency_s=latency_s, usage=Usage(100, 1, cached_tokens=50), now=0.0)
    assert speeds.latency_s("m", now=FRESH_S) == pytest.approx(1.2)
    assert speeds.cached_share("m", now=0.0) == pytest.approx(0.5)
    assert speeds.latency_s("m", now=FRESH_S + 1) is None
    assert speeds.cached_share("m", now=FRESH_S + 1) == 0.0
