"""A model that can't do what the job asks for: it is passed over with its reason, and the next is asked."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from config.catalog import Catalog
from tests.support.ports import free_port
from workers.limiter import TooLate
from workers.pipeline.offers import with_api
from workers.prompt.job import Options, PromptJob
from workers.prompt.parked import Parked
from workers.providers.keyring import KeyRing

from .test_fallbacks import Others, calls

KEYS = KeyRing({name: [SecretStr("sk-canary-77aa")] for name in "abc"})
LONG = "a long text of many words " * 40
UNKNOWN = "how much b takes is not known; state its `max_tokens_per_input`"


def catalog(urls: dict[str, str], *, providers: Any = None, **models: Any) -> Catalog:
    """`a` falls back on the others. `models` and `providers` are further keys of theirs."""
    names = list(urls)
    first = {"fallbacks": names[1:]}
    own = providers or {}
    return Catalog.model_validate(
        {
            "providers": {name: {"base_url": urls[name], "api_keys": ["KEY"], **own.get(name, {})} for name in names},
            "models": {
                name: {"provider": name, **(first if name == "a" else {}), **models.get(name, {})} for name in names
            },
        }
    )


def embed(**options: Any) -> PromptJob:
    return PromptJob("job-e", "embed", "a", {"model": "a", "input": LONG}, Options(**options))


def chat(**body: Any) -> PromptJob:
    prompt = {"model": "a", "messages": [{"role": "user", "content": "How many?"}], **body}
    return PromptJob("job-c", "chat", "a", prompt)


def steps(result: Any) -> list[tuple[str, str, str | None]]:
    return [(each.code, each.answered_by, each.next) for each in result.failed_attempts]


# -- too_long


@pytest.mark.parametrize("policy", ["split", "truncate"])
async def test_the_next_is_asked_where_a_length_is_not_known(pipeline_to: Any, simulate: Any, policy: Any) -> None:
    a, b, c = await simulate("404"), await simulate(), await simulate()
    known = {"max_tokens_per_input": 100}
    made = catalog({"a": a.url, "b": b.url, "c": c.url}, a=known, c=known)
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(embed(too_long=policy))
    assert (result.answered_by, calls(a, b, c)) == ("c/c", [1, 0, 1])
    assert steps(result)[1:] == [("bad_request", "b/b", "c: b can't do what the job asks for")]
    assert UNKNOWN in result.failed_attempts[1].message
    assert result.attempts == 2, "who was passed over was not called"


async def test_the_first_too_is_passed_over(pipeline_to: Any, simulate: Any) -> None:
    a, b = await simulate(), await simulate()
    made = catalog({"a": a.url, "b": b.url}, b={"max_tokens_per_input": 100})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(embed(too_long="split"))
    assert (result.answered_by, calls(a, b)) == ("b/b", [0, 1])


async def test_where_no_length_is_known_the_job_fails_with_that(pipeline_to: Any, simulate: Any) -> None:
    a, b = await simulate(), await simulate()
    async with pipeline_to("", catalog=catalog({"a": a.url, "b": b.url}), keys=KEYS) as pipeline:
        result = await pipeline.run(embed(too_long="split"))
    assert (result.error.code, result.attempts, calls(a, b)) == ("bad_request", 0, [0, 0])
    assert UNKNOWN in result.error.message
    assert steps(result) == [("bad_request", "a/a", "b: a can't do what the job asks for")]


async def test_a_text_too_long_for_one_may_fit_another(pipeline_to: Any, simulate: Any) -> None:
    a, b = await simulate(), await simulate()
    made = catalog({"a": a.url, "b": b.url}, a={"max_tokens_per_input": 100}, b={"max_tokens_per_input": 1_000})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(embed())
        assert (result.answered_by, calls(a, b)) == ("b/b", [0, 1])
        alone = await pipeline.run(embed(fallbacks=()))
    assert (alone.error.code, alone.attempts) == ("too_large", 0)


@pytest.mark.parametrize(("of_b", "answers"), [(1_000, True), (299, False)])
async def test_a_length_the_provider_refuses_leads_on(
    pipeline_to: Any, simulate: Any, of_b: int, answers: bool
) -> None:
    a, b = await simulate(max_tokens_per_input=100), await simulate()
    made = catalog({"a": a.url, "b": b.url}, a={"max_tokens_per_input": 300}, b={"max_tokens_per_input": of_b})
    async with pipeline_to("", catalog=made, keys=KEYS, real_time=True) as pipeline:
        result = await pipeline.run(embed())
    assert (result.ok, calls(a, b)) == (answers, [1, int(answers)])


# -- other things that a model can't do


async def test_the_first_model_may_lack_words_for_it(pipeline_to: Any, simulate: Any) -> None:
    b = await simulate()
    made = catalog({"a": "http://127.0.0.1:1/v1", "b": b.url}, providers={"a": {"kind": "anthropic"}})
    async with pipeline_to("", catalog=made, keys=KEYS) as pipeline:
        result = await pipeline.run(chat(n=2))
    assert (result.answered_by, result.attempts) == ("b/b", 1)
    [passed] = result.failed_attempts
    assert (passed.code, passed.next) == ("bad_request", "b: a can't do what the job asks for")
    assert passed.message.startswith("`n`: ")


@pytest.mark.parametrize("lacks", ["words", "a key", "an endpoint"])
async def test_what_the_last_lacks_hides_no_failure(pipeline_to: Any, simulate: Any, lacks: str) -> None:
    a = await simulate("503")
    of_b = {"words": {"kind": "anthropic"}, "an endpoint": {"apis": ["embeddings"]}}.get(lacks, {})
    made = catalog({"a": a.url, "b": "http://127.0.0.1:1/v1"}, providers={"b": of_b})
    keys = KeyRing({"a": [SecretStr("k")]}, {"b": "set B_KEY"}) if lacks == "a key" else KEYS
    async with pipeline_to("", catalog=made, keys=keys) as pipeline:
        result = await pipeline.run(chat(n=2))
    assert (result.error.code, result.error.http_status, result.error.retryable) == ("server_error", 503, True)
    last = result.failed_attempts[-1]
    expected = {
        "words": ("bad_request", "`n`: "),
        "a key": ("auth", "set B_KEY"),
        "an endpoint": ("not_found", "b is not known to answer /chat/completions"),
    }
    code, words = expected[lacks]
    assert (last.code, last.answered_by, last.next) == (code, "b/b", None)
    assert last.message.startswith(words)


async def test_a_fallback_whose_endpoint_another_knows_is_its(pipeline_to: Any, simulate: Any) -> None:
    a, b = await simulate("404"), await simulate()
    urls, others = {"a": a.url, "b": b.url}, Others(with_api("b", "chat"))
    lacking = catalog(urls, providers={"b": {"apis": ["embeddings"]}})
    async with pipeline_to("", catalog=lacking, keys=KEYS, others=others) as pipeline:
        with pytest.raises(Parked) as caught:
            await pipeline.run(chat())
    assert (caught.value.for_others, others.asked) == (True, [with_api("b", "chat")])
    async with pipeline_to("", catalog=catalog(urls), keys=KEYS) as other_worker:
        result = await other_worker.run(chat(), parked=caught.value.memory)
    assert (result.answered_by, result.attempts, calls(a, b)) == ("b/b", 2, [1, 1])


# -- nobody is left to give way to


async def test_who_has_nobody_to_give_way_to_waits(pipeline_to: Any) -> None:
    """The first can't be reached, and the second can't do the job: it is the first that has to be waited for."""
    urls = {"a": f"http://127.0.0.1:{free_port()}/v1", "b": "http://127.0.0.1:1/v1"}
    made = catalog(urls, providers={"b": {"kind": "anthropic"}})
    async with pipeline_to("", catalog=made, keys=KEYS, park_after_s=0.0) as pipeline:
        with pytest.raises(Parked, match="can't be reached"):
            await pipeline.run(chat(n=2))


async def test_all_its_time_is_for_the_one_that_can(
    pipeline_to: Any, simulate: Any, free_limits: Any, clock: Any
) -> None:
    a = await simulate()
    free_limits.raises = [TooLate("the job's deadline passes before its turn")]
    made = catalog({"a": a.url, "b": "http://127.0.0.1:1/v1"}, providers={"b": {"kind": "anthropic"}})
    job = PromptJob("job-c", "chat", "a", chat(n=2).body, Options(deadline_at=clock.now_s + 40))
    async with pipeline_to("", catalog=made, keys=KEYS, limits=free_limits) as pipeline:
        result = await pipeline.run(job)
    assert result.answered_by == "a/a"
    assert [asked["deadline_at"] - clock.now_s for asked in free_limits.asked] == [20, 40], "b needs none of it"
    assert [each.next for each in result.failed_attempts] == [
        "b: the limit of a gave no turn in time",
        "a: b can't do what the job asks for",
    ]
