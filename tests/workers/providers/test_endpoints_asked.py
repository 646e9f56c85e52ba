"""Responses, completions and moderations through the pipeline, to the simulated provider in each of its dialects."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from config.catalog import Catalog, load_catalog
from tasks.wire.kinds import KINDS, JobKind
from workers.answers.digest import Digests
from workers.answers.known import Known, decode, encode
from workers.prompt.job import Options, PromptJob
from workers.providers import CODECS
from workers.simulator.dialects import DIALECTS

from .conftest import ONCE
from .test_endpoints import NEW, each_new, job_of, message, read, response, text
from .wires import WIRES, dialect_of, provider_at


def table(kind: JobKind) -> dict[str, Any]:
    return {"apis": [KINDS[kind].api]}


@each_new
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.covers("catalog", "providers.apis")
@pytest.mark.promise(51)
async def test_each_wire_answers_what_it_has(kind: JobKind, wire: str, ask: Any, key: str) -> None:
    has_it = KINDS[kind].api in dialect_of(wire).apis
    provider = table(kind) if has_it else None
    result, simulator = await ask(wire, job_of(kind), api_key=key, provider=provider)
    if not has_it:
        assert (result.error.code, result.attempts, simulator.stats()["calls"]) == ("not_found", 0, 0)
        assert f'add "{KINDS[kind].api}" to `apis` in [providers.p]' in result.error.message
        return
    assert result.ok, result.error
    assert (result.text is None) is (kind == "moderate")
    stats = simulator.stats()
    assert (stats["prompt_tokens"], stats["completion_tokens"]) == (
        result.usage.input_tokens,
        result.usage.output_tokens,
    )


@each_new
@pytest.mark.parametrize("fault", ["429", "503", "empty", "html", "null", "deep"])
async def test_faults_have_the_names_that_they_have_for_chats(
    kind: JobKind, fault: str, ask: Any, chat_job: Any
) -> None:
    failed, _ = await ask("openai", job_of(kind), faults={fault: 1.0}, provider=table(kind))
    chat, _ = await ask("openai", chat_job(), faults={fault: 1.0})
    assert (failed.error.code, failed.error.retryable) == (chat.error.code, chat.error.retryable)


@pytest.mark.parametrize("fault", ["truncated", "content-filter"])
async def test_a_response_is_cut_and_filtered_as_chats_are(fault: str, ask: Any, chat_job: Any) -> None:
    result, _ = await ask("openai", job_of("respond"), faults={fault: 1.0}, provider=table("respond"))
    chat, _ = await ask("openai", chat_job(), faults={fault: 1.0})
    assert (result.ok, result.error and result.error.code) == (chat.ok, chat.error and chat.error.code)


async def test_several_prompts_are_completed_at_once(ask: Any) -> None:
    job = job_of("complete", ["a", "b"], n=2, max_tokens=5)
    result, _ = await ask("openai", job, provider=table("complete"))
    assert [choice["index"] for choice in result.response["choices"]] == [0, 1, 2, 3]


async def test_limits_hold_for_all_kinds(simulate: Any, pipeline_to: Any) -> None:
    simulator = await simulate(rpm=3, algorithm="fixed", latency_ms=0)
    provider = provider_at(simulator, "openai", apis=[kind.api for kind in KINDS.values()])
    async with pipeline_to(simulator.url, provider=provider, retry=ONCE) as pipeline:
        results = [await pipeline.run(job_of(kind)) for kind in [*NEW, "respond"]]
    assert [result.error and result.error.code for result in results] == [None, None, None, "rate_limited"]


FREE = {"input": 0, "output": 0, "date": "2026-11-28", "source": "a price list"}


@pytest.mark.parametrize(
    ("price", "cost_usd"), [(None, None), (FREE, 0.0), ({**FREE, "input": 0.1}, None), ({**FREE, "output": 0.1}, None)]
)
async def test_a_moderation_is_free_where_its_price_says_so(
    price: Any, cost_usd: Any, simulate: Any, pipeline_to: Any
) -> None:
    simulator = await simulate()
    provider = provider_at(simulator, "openai", apis=["moderations"])
    async with pipeline_to(simulator.url, provider=provider, price=price) as pipeline:
        result = await pipeline.run(job_of("moderate"))
    assert (result.ok, result.cost_usd) == (True, cost_usd)


async def test_the_next_model_answers_what_this_one_lacks(simulate: Any, pipeline_to: Any) -> None:
    simulator = await simulate()
    one, other = provider_at(simulator, "openai"), provider_at(simulator, "openai", apis=["responses"])
    models = {"m": {"provider": "p", "fallbacks": ["e"]}, "e": {"provider": "q"}}
    catalog = Catalog.model_validate({"providers": {"p": one, "q": other}, "models": models})
    async with pipeline_to("", catalog=catalog) as pipeline:
        result = await pipeline.run(job_of("respond"))
    assert (result.ok, result.answered_by, result.attempts) == (True, "q/e", 1)


def test_what_a_kind_of_provider_never_has_is_refused() -> None:
    for kind, api in (("anthropic", "responses"), ("azure", "moderations")):
        url = "https://h/openai/v1"
        with pytest.raises(ValueError, match=f"apis: a provider of kind '{kind}' has no {api}"):
            Catalog.model_validate({"providers": {"p": {"base_url": url, "kind": kind, "apis": [api]}}})


def test_the_simulated_providers_have_what_their_presets_have() -> None:
    presets = {name: set(provider.apis) for name, provider in load_catalog().providers.items() if name in DIALECTS}
    del presets["anthropic"]  # its codec refuses embeddings with better words
    assert {"openai", "groq", "openrouter", "mistral"} <= presets.keys()
    assert {name: set(DIALECTS[name].apis) for name in presets} == presets


# -- in pieces, and again


def streamed() -> PromptJob:
    return replace(job_of("respond"), options=Options(stream=True))


async def test_a_streamed_response_is_the_same(ask: Any) -> None:
    whole, _ = await ask("openai", job_of("respond"), provider=table("respond"))
    pieces, simulator = await ask("openai", streamed(), provider=table("respond"))
    assert (pieces.text, pieces.response, pieces.usage) == (whole.text, whole.response, whole.usage)
    assert simulator.stats()["calls"] == 1


@pytest.mark.parametrize("fault", ["stream-cut", "stream-error"])
async def test_a_response_that_breaks_off_may_be_paid_for(fault: str, ask: Any, chat_job: Any) -> None:
    result, _ = await ask("openai", streamed(), provider=table("respond"), faults={fault: 1.0})
    chat, _ = await ask("openai", chat_job(stream=True), faults={fault: 1.0})
    assert (result.error.code, result.error.retryable) == (chat.error.code, chat.error.retryable)
    assert result.failed_attempts[0].suspected_payment


def test_kinds_never_share_an_answer() -> None:
    table = {"base_url": "https://h/v1", "apis": ["embeddings", "responses", "moderations"]}
    catalog = Catalog.model_validate({"providers": {"p": table}, "models": {"m": {"provider": "p"}}})
    model, provider = catalog.model("m"), catalog.providers["p"]
    asked: Any = SimpleNamespace(alias="m", model=model, provider=provider, codec=CODECS["openai"])
    digests = Digests()
    same: list[JobKind] = ["embed", "respond", "moderate"]
    assert len({digests.of(job_of(kind, "x"), asked) for kind in same}) == len(same)


def test_a_stored_response_keeps_its_text() -> None:
    answer = read(job_of("respond"), response(message(text("24 clips"))))
    stored = encode(Known(answer, "p/m", None))
    assert stored is not None
    found = decode(stored)
    assert found is not None and found.answer == answer
