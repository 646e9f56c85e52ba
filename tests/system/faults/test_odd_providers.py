"""What providers do that are no well-behaved OpenAI: sequences of answers, seen from outside a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.waiting import wait_until

from ...support.scripted import Answer, Asked, ScriptedProvider, completion
from .harness import MESSAGES, World

WITHIN_S = 30.0


def start(world: World, script: Callable[[Asked], Answer], *, limits: str = "") -> ScriptedProvider:
    """A worker whose only model is answered by the script."""
    provider: ScriptedProvider = world.enter(ScriptedProvider(script))
    catalogue = world.directory / "scripted.toml"
    limited = f"limits = {limits}\n" if limits else ""
    catalogue.write_text(
        f'[providers.p]\nbase_url = "{provider.base_url}"\n[models.m]\nprovider = "p"\n{limited}'
        'price = { input = 1, output = 10, date = 2026-01-01, source = "a test" }\n'
    )
    world.start_redis()
    world.start_worker(concurrency=100, environ={"PROMPTMILL_CATALOG": str(catalogue)})
    return provider


def submit(world: World, content: Any) -> Any:
    return world.queue.submit(model="m", messages=[{"role": "user", "content": content}])


def test_one_429_does_not_slow_down_a_key_that_tells_its_limits(world: World) -> None:
    tells = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
    }
    first = Answer(429, {}, {"Retry-After": "1"})
    provider = start(world, lambda asked: first if asked.number == 0 else Answer(200, completion(), tells))
    jobs = [world.queue.submit(model="m", messages=MESSAGES)]
    wait_until(lambda: provider.asked, "the provider is asked")
    jobs += [world.queue.submit(model="m", messages=MESSAGES) for _ in range(50)]
    assert all(result.ok for result in world.results(jobs))
    assert max(asked.at for asked in provider.asked) < WITHIN_S


def test_a_request_that_never_fits_fails_and_holds_nobody_up(world: World) -> None:
    never = {
        "error": {
            "message": "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 12328, "
            "please reduce your message size.",
            "type": "tokens",
            "code": "rate_limit_exceeded",
        }
    }
    long = "x" * 1_500

    def script(asked: Asked) -> Answer:
        return Answer(413, never) if asked.body["messages"][0]["content"] == long else Answer(200, completion())

    provider = start(world, script)
    large = submit(world, long)
    wait_until(lambda: provider.asked, "the provider is asked")
    small = [submit(world, "short") for _ in range(20)]
    (failed,) = world.results([large])
    assert failed.error is not None
    assert (failed.error.code, failed.attempts) == ("too_large", 1)
    assert all(result.ok for result in world.results(small))
    assert len(provider.asked) == 21
    assert max(asked.at for asked in provider.asked) < 5


def test_pictures_and_sounds_are_no_text(world: World) -> None:
    provider = start(
        world,
        lambda asked: Answer(200, completion(prompt_tokens=1_000, completion_tokens=5)),
        limits="{ tpm = 300000 }",
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 600_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 600_000, "format": "wav"}}
    jobs = [submit(world, [{"type": "text", "text": "What is it?"}, picture]) for _ in range(6)]
    jobs.append(submit(world, [sound]))
    assert all(result.ok for result in world.results(jobs))
    assert max(asked.at for asked in provider.asked) < WITHIN_S
