"""`promptmill status`, `cancel` and `limits`, as somebody types them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from config.catalog import Model
from tasks import PromptQueue
from tests.support.redis_server import RedisServer
from workers.breaker import BreakerPolicy, Reason, SharedBreakers
from workers.breaker.health import Target
from workers.cli import app
from workers.limiter import Cost, LimiterRegistry, snapshot

MESSAGES = [{"role": "user", "content": "the canary prompt"}]


@pytest.fixture
def url(server: RedisServer) -> str:
    with server.client() as client:
        client.flushall()
    return server.url


def promptmill(*args: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, list(args), env={"COLUMNS": str(columns), "TERM": "dumb"})


def test_status_and_cancel_of_a_job(url: str) -> None:
    queue = PromptQueue(url).sync
    job = queue.submit(model="m", messages=MESSAGES)
    shown = promptmill("status", job.id, "--redis", url)
    assert (shown.exit_code, shown.stdout.split()) == (0, ["id", job.id, "status", "queued"])
    assert promptmill("cancel", job.id, "--redis", url).stdout == "1 cancelled\n"
    assert "canary" not in shown.output
    queue.close()


def test_status_of_a_group_counts(url: str) -> None:
    queue = PromptQueue(url).sync
    group = queue.submit_many({"model": "m", "messages": MESSAGES} for _ in range(3))
    shown = json.loads(promptmill("status", group.id, "--json", "--redis", url).stdout)
    assert (shown["total"], shown["submitted"], shown["succeeded"]) == (3, 3, 0)
    assert promptmill("cancel", group.id, "--redis", url).stdout == "3 cancelled\n"
    queue.close()


@pytest.mark.parametrize("job_id", ["nobody-knows-it", "pmg-nobody-knows-it"])
def test_what_nobody_knows_is_unknown(url: str, job_id: str) -> None:
    shown = promptmill("status", job_id, "--redis", url)
    assert shown.exit_code in {1, 2}
    assert "unknown" in shown.output or "no group" in shown.output.lower()


@pytest.mark.parametrize("command", [["status", "x"], ["cancel", "x"], ["limits"]])
def test_a_redis_that_is_away_is_named(command: list[str]) -> None:
    shown = promptmill(*command, "--redis", "redis://127.0.0.1:1/0")
    assert shown.exit_code == 2
    assert "Error:" in shown.output
    assert "Redis" in shown.output


async def use_a_limiter(url: str, **fields: object) -> None:
    model = Model.model_validate({"name": "m", "provider": "p", "upstream": "m", "limits": {"rpm": 60}, **fields})
    redis: Redis = Redis.from_url(url)
    async with LimiterRegistry(redis, now=time.time) as registry:
        permit = await registry.admit(model, (), cost=Cost(10, 20, 40))
        permit.settle()
        async with asyncio.timeout(10):
            while not (views := await snapshot(redis)) or not views[0].settled:
                await asyncio.sleep(0.05)
    await redis.aclose()


def test_limits_shows_each_limiter(url: str) -> None:
    assert "No worker has used a limiter" in promptmill("limits", "--redis", url).stdout
    asyncio.run(use_a_limiter(url))
    view = json.loads(promptmill("limits", "--json", "--redis", url).stdout)
    assert (view["provider"], view["model"], view["settled"]) == ("p", "m", 1)
    # Of 60 a minute, of a kind that nobody has stated: what is safe whichever way the provider counts.
    assert 55 < view["permitted_per_minute"]["requests"] <= 60
    # One a second: the next goes when the first has been gone for that long.
    assert 0 <= view["wait_s"] < 1.1
    assert (view["paused_until"], view["paused_for_s"]) == (None, 0.0)
    table = promptmill("limits", "--redis", url, columns=80).stdout.splitlines()
    assert table[0].split() == ["model", "requests", "tokens", "in", "waiting", "429s", "estimated"]
    assert table[2].split()[0] == "p/m"
    assert table[2].split()[-4:] == ["0", "0", "0", "30"]
    assert table[3].split()[:5] == ["none", "of", "56", "of", "?"]
    assert max(map(len, table)) <= 80


def test_limits_shows_what_the_organisation_has_above_its_keys(url: str) -> None:
    asyncio.run(use_a_limiter(url, organisation_limits={"rpm": 600, "algorithm": "bucket"}))
    view = json.loads(promptmill("limits", "--json", "--redis", url).stdout)
    assert view["organisation_permitted_per_minute"] == {"requests": pytest.approx(600, rel=0.001)}
    used = view["organisation_used_last_minute"]["requests"]
    # A minute that began meanwhile counts the last one's by its rest; a slot that a busy process let lapse counts too.
    assert 0.5 < used <= 4
    *_, row, permitted = promptmill("limits", "--redis", url, columns=80).stdout.splitlines()
    name, shown, *_ = row.split()
    assert name == "p/m" and 1 <= int(shown) <= 4
    assert permitted.split()[:4] == ["all", "keys", "of", "600"]


async def open_a_breaker(url: str, message: str) -> None:
    async with Redis.from_url(url) as redis:
        shared = SharedBreakers(redis, BreakerPolicy(failures=1), process="a")
        reason = Reason("server_error", message, 503)
        for _ in range(2):  # the first has all processes asked for their answers
            await shared.report(Target("p", "m"), failing=[("job-1", True)], answered=[], reason=reason)
        await shared.close()


def test_limits_names_a_provider_that_is_out(url: str) -> None:
    asyncio.run(open_a_breaker(url, "the provider is overloaded (503)\x1b[31m"))
    shown = promptmill("limits", "--redis", url).stdout
    assert "p/m is out for" in shown and "the provider is overloaded (503)" in shown and "one tries in" in shown
    assert "\x1b" not in shown
    view = json.loads(promptmill("limits", "--json", "--redis", url).stdout)["breaker"]
    assert (view["provider"], view["model"], view["state"], view["opened"]) == ("p", "m", "open", 1)
    assert 0 < view["next_probe_s"] <= 5


def test_the_command_line_lists_what_the_interface_promises() -> None:
    shown = promptmill("--help").stdout
    for command in ("run", "simulate", "doctor", "limits", "metrics", "status", "cancel", "dead"):
        assert f" {command} " in shown


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_dead_list_shows_ids_that_dead_show_takes(url: str, server: RedisServer, columns: int) -> None:
    ids = ["7c1a2c9e-3b5f-4f0e-9d2a-2f8f0c6f6a55", "invoice-" + "2026-" * 20, "x"]
    reason = "no worker knows the task prompts.renamed; start one that does, or retry it later"
    with server.client() as client:
        for job_id in ids:
            letter = {"id": job_id, "at": 0, "task": "prompts.renamed", "kind": "unknown_task", "reason": reason}
            client.lpush("pm:dead", json.dumps({**letter, "queue": "prompts", "message": "{}"}))
    listed = promptmill("dead", "list", "--redis", url, columns=columns).stdout.splitlines()
    assert listed[0].split() == ["id", "buried", "task", "kind", "reason"]
    assert [line.split()[0] for line in listed[1:]] == ids[::-1]
    assert all(line.endswith(reason) for line in listed[1:])
    for line in listed[1:]:
        assert promptmill("dead", "show", line.split()[0], "--redis", url).exit_code == 0
