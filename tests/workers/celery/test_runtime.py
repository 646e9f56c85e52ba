"""The composition root on a real Redis, and the two tasks on top of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.utils.saferepr import saferepr
from kombu.utils.json import dumps as kombu_dumps

from config.api_keys import UnusableKey
from config.settings import get_settings
from tasks.errors import AuthFailed, BadRequest, JobFailed, ServerFailed
from tasks.results import PromptResult
from tasks.wire import redis_keys
from tasks.wire.kinds import TASK_NAMES
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from workers.celery.app import app
from workers.celery.runtime import current, lifespan
from workers.celery.tasks import TASKS
from workers.prompt.parked import Parked


@pytest.fixture
def redis_url(server: RedisServer) -> str:
    return server.url


KEY = "sk-canary-9d27aa10"
BODY = {"model": "m", "messages": [{"role": "user", "content": "the canary prompt"}]}


@pytest.fixture
def deploy_to(deploy: Callable[..., None]) -> Callable[[str], None]:
    """`deploy_to(URL)`: one provider `p` with the models `m` and `e`, and its key."""
    return partial(deploy, model='[models.e]\nprovider = "p"', key=KEY)


@pytest.fixture
def environment(deployment: pytest.MonkeyPatch, deploy_to: Callable[[str], None]) -> pytest.MonkeyPatch:
    """A deployment with one provider `p`, whose key is set, and a Redis."""
    deployment.setenv("PROMPTMILL_RETRY__MAX_ATTEMPTS", "1")
    deploy_to("http://127.0.0.1:1/v1")
    return deployment


@pytest.fixture
async def provider(environment: pytest.MonkeyPatch, simulate: Any, deploy_to: Callable[[str], None]) -> Any:
    """A simulated provider that the catalogue names."""

    async def start(fault: str | None = None, **options: Any) -> Any:
        simulator = await simulate(fault, api_key=KEY, **options)
        deploy_to(simulator.url)
        return simulator

    return start


def test_a_task_called_directly_says_where_it_runs() -> None:
    with pytest.raises(RuntimeError, match="celery -A workers worker"):
        current()


async def test_the_pipeline_is_there_as_long_as_the_lifespan(provider: Any, wait_until: Any) -> None:
    simulator = await provider()
    async with lifespan(app):
        result = await current().handle("chat", "job-1", [], BODY)
        assert result.ok
        assert simulator.stats()["open_connections"] == 1
    await wait_until(lambda: simulator.stats()["open_connections"] == 0, description="the session is closed")
    with pytest.raises(RuntimeError):
        current()


@pytest.mark.covers("setting", "key_prefix", "redis_url")
async def test_the_models_are_announced_by_redis_time(environment: pytest.MonkeyPatch, redis_url: str) -> None:
    environment.setenv("PROMPTMILL_KEY_PREFIX", "staging:")
    key = f"staging:{redis_keys.MODELS}"
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.zadd(key, {"gone": 1.0})
        async with lifespan(app):
            announced = dict(client.zrange(key, 0, -1, withscores=True))
        seconds, _ = client.time()
        assert {"m", "e"} <= announced.keys()
        assert "gone" not in announced
        assert abs(announced["m"] - seconds) < 60
        assert 0 < client.ttl(key) <= redis_keys.MODELS_TTL_S


async def test_without_redis_the_worker_starts_all_the_same(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("PROMPTMILL_REDIS_URL", f"redis://:hidden@127.0.0.1:{free_port()}/0")
    async with lifespan(app):
        assert current()
    assert "Redis did not take the list of models" in caplog.text
    assert "hidden" not in caplog.text


async def test_an_unusable_key_fails_its_provider_s_jobs_alone(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    catalog = tmp_path / "two.toml"
    local = '[providers.local]\nbase_url = "http://127.0.0.1:9/v1"\n[models.here]\nprovider = "local"\n'
    catalog.write_text(local)
    environment.setenv("PROMPTMILL_CATALOG", str(catalog))
    environment.setenv("OPENAI_API_KEY", "EMPTY")
    get_settings.cache_clear()
    async with lifespan(app):
        assert "OPENAI_API_KEY" in caplog.text
        result = await current().handle("chat", "job-1", [], {**BODY, "model": "gpt-4o-mini"})
    assert result.error is not None
    assert result.error.code == "auth"
    assert "OPENAI_API_KEY" in result.error.message


async def test_a_placeholder_key_is_refused_at_start(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("P_KEY", "sk-your-key")
    with pytest.raises(UnusableKey, match="P_KEY"):
        async with lifespan(app):
            pytest.fail("the worker has started")


async def test_no_key_at_all_is_a_loud_warning_and_fails_only_the_jobs(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.delenv("P_KEY")
    async with lifespan(app):
        assert "NO PROVIDER HAS A KEY" in caplog.text
        assert "P_KEY" in caplog.text
        result = await current().handle("chat", "job-1", [], BODY)
    assert result.error is not None
    assert result.error.code == "auth"
    assert "P_KEY" in result.error.message


# -- the tasks


async def call(task: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a task's coroutine as the pool does, with a request."""
    task.push_request(id="task-7", group="pmg-1")
    try:
        return await task.run(*args, **kwargs)
    finally:
        task.pop_request()


@pytest.mark.parametrize("name", TASK_NAMES.values())
def test_the_tasks_keep_their_promises_to_celery(name: str) -> None:
    task = app.tasks[name]
    assert task.acks_late
    assert task.throws == (JobFailed,)


async def test_an_answer_is_plain_json_that_hides_itself(provider: Any) -> None:
    await provider()
    async with lifespan(app):
        returned = await call(TASKS["chat"], json.dumps({"body": BODY}))
        embedded = (await call(TASKS["embed"], model="e", input="some text")).value
    answered = json.loads(kombu_dumps(returned))  # as the next task of a chain is given it
    assert (answered["id"], answered["status"], answered["model"]) == ("task-7", "succeeded", "m")
    assert embedded["response"]["data"][0]["embedding"]
    assert answered["text"] not in repr(returned)
    assert answered["text"] not in saferepr(returned), "what Celery writes into logs and events"
    assert PromptResult.from_dict(answered).ok


async def test_a_failure_is_an_exception_that_names_its_code(provider: Any, caplog: Any) -> None:
    await provider("500")
    with caplog.at_level(logging.DEBUG):
        async with lifespan(app):
            with pytest.raises(ServerFailed, match=r"^server_error: ") as failed:
                await call(TASKS["chat"], **BODY)
            with pytest.raises(BadRequest, match=r"^bad_request: "):
                await call(TASKS["chat"], "{")
    assert failed.value.result is not None
    assert failed.value.result.id == "task-7"
    assert KEY not in caplog.text
    assert "canary prompt" not in caplog.text


async def test_a_refused_key_fails_the_job(provider: Any, environment: pytest.MonkeyPatch) -> None:
    await provider()
    environment.setenv("P_KEY", "sk-another-b81c22e4")
    async with lifespan(app):
        with pytest.raises(AuthFailed):
            await call(TASKS["chat"], **BODY)


async def test_a_direct_call_says_where_the_task_runs() -> None:
    with pytest.raises(RuntimeError, match="celery -A workers worker"):
        await TASKS["chat"](**BODY)


# -- settings that reach a job


async def answer(**options: Any) -> PromptResult:
    async with asyncio.timeout(60):
        return await current().handle("chat", "job-1", [], {**BODY, "promptmill": options})


@pytest.mark.covers("setting", "retry.max_attempts", "retry.base_s")
async def test_a_job_has_the_attempts_and_pauses_of_the_settings(
    provider: Any, environment: pytest.MonkeyPatch
) -> None:
    await provider("500")
    environment.setenv("PROMPTMILL_RETRY__MAX_ATTEMPTS", "7")
    environment.setenv("PROMPTMILL_RETRY__BASE_S", "0.001")
    async with lifespan(app):
        result = await answer()
    assert result.attempts == 7
    assert result.duration_s < 5, "the default pauses are half a minute in all"


@pytest.mark.covers("setting", "retry.attempts_cap")
@pytest.mark.covers("option", "max_attempts")
@pytest.mark.parametrize(("asked", "made"), [(2, 2), (9, 3)])
async def test_a_job_may_ask_for_attempts_up_to_the_cap(
    provider: Any, environment: pytest.MonkeyPatch, asked: int, made: int
) -> None:
    await provider("500")
    environment.setenv("PROMPTMILL_RETRY__ATTEMPTS_CAP", "3")
    environment.setenv("PROMPTMILL_RETRY__BASE_S", "0.001")
    async with lifespan(app):
        assert (await answer(max_attempts=asked)).attempts == made


@pytest.mark.covers("setting", "retry.cap_s")
async def test_no_pause_is_longer_than_the_cap_whatever_is_asked(
    environment: pytest.MonkeyPatch, deploy_to: Callable[[str], None], raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(503, b"{}", "Retry-After: 30"))
    deploy_to(server.url)
    environment.setenv("PROMPTMILL_RETRY__MAX_ATTEMPTS", "2")
    environment.setenv("PROMPTMILL_RETRY__BASE_S", "0.001")
    environment.setenv("PROMPTMILL_RETRY__CAP_S", "0.01")
    async with lifespan(app):
        result = await answer()
    assert (result.attempts, result.duration_s < 10) == (2, True)


@pytest.mark.covers("setting", "breaker.patience_s")
async def test_a_job_without_deadline_waits_as_long_as_the_setting(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("PROMPTMILL_BREAKER__PATIENCE_S", "0.01")
    async with lifespan(app):
        result = await answer()
    assert result.error is not None
    assert result.error.code == "connection"
    assert "0.01 s (PROMPTMILL_BREAKER__PATIENCE_S)" in result.error.message


@pytest.mark.covers("setting", "broker_url")
async def test_the_queue_s_redis_may_be_another_than_the_first(environment: pytest.MonkeyPatch, redis_url: str) -> None:
    environment.setenv("PROMPTMILL_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    environment.setenv("PROMPTMILL_BROKER_URL", redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.delete(redis_keys.MODELS)
        async with lifespan(app):
            assert client.exists(redis_keys.MODELS)


def limit_models(folder: Path, limits: str) -> None:
    path = folder / "catalog.toml"
    path.write_text(path.read_text().replace('provider = "p"', f'provider = "p"\nlimits = {{ {limits} }}'))


@pytest.mark.covers("setting", "limit.when_redis_is_away")
@pytest.mark.parametrize(("policy", "status"), [("open", "succeeded"), ("closed", "expired")])
async def test_without_redis_limited_models_do_as_the_setting_says(
    provider: Any, environment: pytest.MonkeyPatch, tmp_path: Path, policy: str, status: str
) -> None:
    await provider()
    limit_models(tmp_path, "rpm = 600")
    environment.setenv("PROMPTMILL_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    environment.setenv("PROMPTMILL_LIMIT__WHEN_REDIS_IS_AWAY", policy)
    async with lifespan(app):
        assert (await answer(deadline_s=1.5)).status == status


@pytest.mark.covers("setting", "limit.degraded_for_s")
@pytest.mark.parametrize(("for_s", "status"), [("60", "succeeded"), ("0.001", "expired")])
async def test_without_redis_a_worker_continues_as_the_setting_says(
    provider: Any, environment: pytest.MonkeyPatch, tmp_path: Path, for_s: str, status: str
) -> None:
    await provider()
    limit_models(tmp_path, "rpm = 6000")
    server = RedisServer(tmp_path)
    environment.setenv("PROMPTMILL_REDIS_URL", server.url)
    environment.setenv("PROMPTMILL_LIMIT__DEGRADED_FOR_S", for_s)
    environment.setenv("PROMPTMILL_LIMIT__PARK_AFTER_S", "3600")
    async with lifespan(app):
        assert (await answer()).ok
        server.close()
        for _ in range(20):  # what was leased before is used up
            last = await answer(deadline_s=3)
            if not last.ok:
                break
    assert last.status == status


# -- keys of the catalogue that reach a job


@pytest.mark.covers("catalog", "providers.base_url", "models.provider")
@pytest.mark.covers("setting", "catalog")
async def test_a_job_goes_to_its_model_s_provider(provider: Any) -> None:
    simulator = await provider()
    async with lifespan(app):
        assert (await answer()).answered_by == "p/m"
    assert simulator.stats()["calls"] == 1


@pytest.mark.covers("catalog", "limits.rpm", "limits.tpm", "limits.rpd", "limits.input_tpm", "limits.output_tpm")
@pytest.mark.covers("catalog", "models.limits")
@pytest.mark.parametrize("limits", ["rpm = 1", "tpm = 50", "rpd = 1", "input_tpm = 2", "output_tpm = 40"])
async def test_what_goes_beyond_a_limit_is_not_answered_at_once(provider: Any, tmp_path: Path, limits: str) -> None:
    simulator = await provider()
    limit_models(tmp_path, limits)
    answered = 0
    async with lifespan(app):
        for _ in range(2):
            try:
                answered += (await answer(deadline_s=1.5)).ok
            except Parked:
                continue
    assert answered < 2
    assert simulator.stats()["calls"] == answered


@pytest.mark.covers("catalog", "limits.max_in_flight")
async def test_calls_at_a_time_stay_under_their_limit(provider: Any, tmp_path: Path) -> None:
    simulator = await provider(latency_ms=30)
    limit_models(tmp_path, "max_in_flight = 1")
    async with lifespan(app):
        results = await asyncio.gather(*(answer() for _ in range(5)))
    assert all(result.ok for result in results)
    assert simulator.stats()["peak_in_flight"] == 1
