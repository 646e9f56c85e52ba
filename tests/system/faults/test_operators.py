"""What an operator has: the checks at start, `promptmill doctor` and `promptmill dead`. Promises.md rows 9 and 12."""

from __future__ import annotations

import json
import resource
import threading
from typing import TYPE_CHECKING, Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from tasks import DeadLettered
from tests.support.waiting import wait_until
from workers.checks import check_file_limit
from workers.commands.dead import dead
from workers.commands.doctor import doctor

from .harness import MESSAGES, Provider
from .test_messages import EMBEDDED, message

if TYPE_CHECKING:
    from pathlib import Path

    from .harness import World

app = Typer()
app.add_typer(dead, name="dead")
app.command()(doctor)


_one_at_a_time = threading.Lock()
"""Scenarios run on threads, and while a command runs in this process it has the process's standard output."""


def run(*arguments: str, exit_code: int = 0) -> str:
    with _one_at_a_time:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == exit_code, result.output
    return result.output


@pytest.mark.covers("setting", "allow_eviction")
def test_a_worker_refuses_an_evicting_redis_unless_told_not_to(world: World) -> None:
    world.start_redis("maxmemory-policy allkeys-lru")
    refused = world.start_worker(wait=False)
    assert refused.wait_exit() != 0
    assert "maxmemory-policy is allkeys-lru" in refused.log_text()
    assert "CONFIG SET maxmemory-policy noeviction" in refused.log_text()
    allowed = world.start_worker(environ={"PROMPTMILL_ALLOW_EVICTION": "true"})
    allowed.wait_logged("maxmemory-policy is allkeys-lru")
    allowed.wait_logged("it keeps nothing on disk")


@pytest.mark.promise(12)
def test_a_worker_refuses_more_prompts_than_it_has_files_for(world: World) -> None:
    world.start_redis()
    few = world.start_worker(concurrency=400, files=256, wait=False)
    assert few.wait_exit() != 0
    assert "`ulimit -n` is 256" in few.log_text() and "need about 500" in few.log_text()


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    ("concurrency", "limit", "level"), [(156, 256, "ok"), (157, 256, "refused"), (10_000, resource.RLIM_INFINITY, "ok")]
)
def test_the_file_limit_counts_the_connections(concurrency: int, limit: int, level: str) -> None:
    assert check_file_limit(concurrency, limit=limit).level == level


def test_dead_letters_are_listed_shown_retried_and_thrown_away(world: World) -> None:
    world.start_redis()
    first = world.start_worker(concurrency=2)
    body = [[], {"model": "quick", "messages": [{"role": "user", "content": "a secret"}]}, EMBEDDED]
    # As if a task had been renamed: no worker knows it, until one does.
    for job_id, task in [("one", "prompts.renamed"), ("two", "prompts.renamed"), ("three", "prompts.lost")]:
        world.redis.lpush("prompts", message(task, body, job_id=job_id))
    world.redis.lpush("prompts", "garbage")
    wait_until(lambda: len(world.dead()) == 4, "all are buried")
    at = ("--redis", world.server.url)
    rows = [json.loads(line) for line in run("dead", "list", "--json", *at).splitlines()]
    assert [row["kind"] for row in rows] == ["garbage", "unknown_task", "unknown_task", "unknown_task"]
    assert [row["id"] for row in rows[1:]] == ["three", "two", "one"]
    assert "a secret" not in run("dead", "list", *at) + run("dead", "list", "--json", *at)
    assert "a secret" in run("dead", "show", "one", *at)
    with pytest.raises(DeadLettered):
        world.queue.job("one").result(timeout_s=10)
    first.kill()
    world.start_worker(concurrency=2, environ={"FAULTS_RENAMED_TASK": "prompts.renamed"})
    assert run("dead", "retry", "one", *at) == "1 back in the queue\n"
    assert world.results([world.queue.job("one")])[0].ok
    assert run("dead", "retry", "--all", *at) == "2 back in the queue\n"
    assert world.results([world.queue.job("two")])[0].ok
    wait_until(lambda: {letter["id"] for letter in world.dead()} >= {"three"}, "the third is buried again")
    assert len(world.dead()) == 2
    run("dead", "retry", world.dead()[-1]["id"], *at, exit_code=2)
    run("dead", "show", "nobody", *at, exit_code=2)
    assert run("dead", "purge", "three", "--yes", *at) == "1 thrown away\n"
    assert run("dead", "purge", "--all", "--yes", *at) == "1 thrown away\n"
    assert run("dead", "list", *at) == "There are no dead letters.\n"


def test_a_retried_job_of_a_group_is_counted_once(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=2, max_deliveries=0)
    group = world.queue.submit_many([{"model": "quick", "messages": MESSAGES, "id": f"g{n}"} for n in range(3)])
    assert [result.error.code for result in group.as_completed() if result.error] == ["dead_letter"] * 3
    assert group.progress().failed == 3
    wait_until(lambda: len(world.dead()) == 3, "all are buried")
    worker.kill()
    world.start_worker(concurrency=2)
    run("dead", "retry", "--all", "--redis", world.server.url)
    wait_until(lambda: group.progress().succeeded == 3, "all succeed")
    assert group.progress().failed == 0
    assert sorted(result.id for result in group.as_completed() if result.ok) == ["g0", "g1", "g2"]


@pytest.fixture
def provider() -> Any:
    provider = Provider("--latency-ms", "0", "--api-key", "sk-good-0123456789abcdef")
    yield provider
    provider.close()


def test_the_doctor_says_what_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    from config.settings import get_settings

    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[providers.good]\nbase_url = "{provider.base_url}"\napi_keys = ["GOOD_KEY"]\n'
        f'[providers.bad]\nbase_url = "{provider.base_url}"\napi_keys = ["BAD_KEY"]\n'
        '[models.mine]\nprovider = "good"\nupstream = "nobody-has-this"\n'
    )
    monkeypatch.setenv("GOOD_KEY", "sk-good-0123456789abcdef")
    monkeypatch.setenv("BAD_KEY", "sk-evil-0123456789abcdef")
    monkeypatch.setenv("PROMPTMILL_CATALOG", str(catalog))
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://127.0.0.1:1/0")
    get_settings.cache_clear()
    try:
        told = json.loads(run("doctor", "--json", exit_code=1))
    finally:
        get_settings.cache_clear()
    levels = {finding["subject"]: finding["level"] for finding in told["findings"]}
    assert told["healthy"] is False
    assert levels["Redis"] == "refused"
    assert levels["provider good, GOOD_KEY"] == "ok"
    assert levels["provider bad, BAD_KEY"] == "refused"
    assert "nobody-has-this" in json.dumps(told)
    assert "0123456789abcdef" not in json.dumps(told)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (['rename-command CONFIG ""', "maxmemory 100mb", "maxmemory-policy volatile-lru"], "policy is volatile-lru"),
        (["cluster-enabled yes"], "it is a node of a Redis Cluster, which Promptmill does not support"),
        (["user default on nopass ~* +@all resetchannels"], "its user lacks a right to Redis's channels"),
        (["user default on nopass ~* +@all resetchannels &celery-task-meta-*"], "its user lacks a right"),
        (["user default on nopass ~* &* +@all -publish"], "its user lacks a right"),
    ],
    ids=["hides its policy", "cluster", "no channels", "half of the channels", "may not publish"],
)
def test_a_worker_says_in_a_sentence_why_it_can_not_use_a_redis(world: World, options: list[str], said: str) -> None:
    world.start_redis(*options)
    refused = world.start_worker(wait=False)
    assert refused.wait_exit() != 0
    assert said in refused.log_text()


def test_a_worker_uses_a_redis_that_hides_its_settings(world: World) -> None:
    world.start_redis('rename-command CONFIG ""', "maxmemory-policy noeviction")
    world.start_worker()
    assert world.results([world.queue.submit(model="quick", messages=MESSAGES)])[0].ok
