"""What a Prometheus gets from `promptmill metrics`, of a real Redis."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from pydantic import SecretStr
from redis.asyncio import Redis
from typer.testing import CliRunner

from config.catalog import Limits
from tasks import PromptQueue
from tests.support.redis_server import RedisServer
from tests.workers.broker.broker import Broker, message
from workers.breaker import BreakerPolicy, Reason, SharedBreakers
from workers.breaker.health import Target
from workers.cli import app
from workers.limiter import Cost, LimiterView, snapshot
from workers.limiter.rate import plan
from workers.limiter.registry import fingerprint
from workers.limiter.shared.schedule import Ask, LimiterName, PauseReport, RedisSchedule
from workers.limiter.view import mark_listed

from .exporter import PATIENCE_S, Exporter, exporter

KEY = SecretStr("sk-canary-key")
NAME = LimiterName("p", "m", fingerprint(KEY))
LABELS = (NAME.fingerprint, NAME.model, NAME.provider)
PRIORITIES = ("interactive", "normal", "6", "bulk")
ALWAYS = {"promptmill_up", "promptmill_scrape_duration_seconds"}


@pytest.fixture(scope="module")
def running(server: RedisServer) -> Iterator[Exporter]:
    with exporter("--redis", server.url) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    """An empty Redis."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def broker(client: Any) -> Broker:
    return Broker(client)


async def use_the_limiter(url: str) -> LimiterView:
    """Half of a limiter's figures are unlike their defaults after this."""
    limits = Limits(rpm=600, tpm=90_000, rpd=100, max_in_flight=8)
    async with Redis.from_url(url) as client:
        schedule = RedisSchedule(client, NAME, plan(limits))
        ask = Ask(process="a", seq=1, settled=3, reserved_tokens=300, used_tokens=240)
        await schedule.acquire(ask)
        await schedule.acquire(Ask(process="a", seq=2, backlog=20, held=2, costs=[Cost(60, 40)] * 20))
        await schedule.pause(PauseReport(epoch=1, asked_s=300.0, alone_s=300.0))
        await mark_listed(client, [NAME], now=time.time())
        [view] = await snapshot(client)
    return view


def test_an_empty_redis_is_all_zeros(client: Any, running: Exporter) -> None:
    scraped = running.scrape()
    assert scraped["promptmill_up"] == {(): 1.0}
    waiting = {
        ("interactive", "prompts"): 0.0,
        ("normal", "prompts"): 0.0,
        ("6", "prompts"): 0.0,
        ("bulk", "prompts"): 0.0,
    }
    assert scraped["promptmill_jobs_waiting"] == waiting
    assert len(scraped["promptmill_dead_letters_buried_total"]) == 7
    others = {name for name in scraped if name not in ALWAYS}
    assert {figure for name in others for figure in scraped[name].values()} == {0.0}


async def open_a_breaker(url: str) -> None:
    async with Redis.from_url(url) as redis:
        shared = SharedBreakers(redis, BreakerPolicy(failures=1), process="a")
        for model in ("m", "m", "again", "again"):  # the first failures of late are judged when they are said again
            reason = Reason("server_error", "busy", 503)
            for _ in range(2):  # the first has all processes asked for their answers
                await shared.report(Target("p", model), failing=[("job-1", True)], answered=[], reason=reason)
        await shared.settle(Target("p", "again"), "works")
        await shared.close()


def test_a_breaker_s_figures(client: Any, running: Exporter, server: RedisServer) -> None:
    asyncio.run(open_a_breaker(server.url))
    scraped = running.scrape()
    # Labels come in the order of their names: model, provider.
    assert scraped["promptmill_breaker_open"] == {("m", "p"): 1, ("again", "p"): 0}
    assert scraped["promptmill_breaker_opened_total"] == {("m", "p"): 1, ("again", "p"): 1}
    seconds = scraped["promptmill_breaker_open_seconds"]
    assert seconds["m", "p"] > 0 and seconds["again", "p"] == 0


def test_the_jobs_of_clients_are_counted_by_priority(client: Any, running: Exporter, server: RedisServer) -> None:
    with PromptQueue(server.url).sync as queue:
        for priority, count in (("interactive", 1), ("normal", 2), ("bulk", 3)):
            for _ in range(count):
                job = queue.submit(model="m", messages=[{"role": "user", "content": "hello"}], priority=priority)  # type: ignore[arg-type] # one of the three
        job.cancel()
    scraped = running.scrape()
    waiting = scraped["promptmill_jobs_waiting"]
    assert [waiting[priority, "prompts"] for priority in PRIORITIES] == [1, 2, 0, 3]
    assert scraped["promptmill_cancelled_marks"] == {(): 1.0}


def test_what_workers_hold_delay_and_bury(broker: Broker, running: Exporter) -> None:
    for number in range(7):
        broker.put(message(f"job-{number}", queue="prompts"), queue="prompts")
    taken = [tag for tag, _ in broker.take("prompts", room=5)]
    broker.leases.condemn(taken[0], "unknown_task", "no worker knows it")
    broker.leases.bury(taken[0])
    broker.leases.delay(taken[1], int(time.time() * 1000) + 600_000)
    broker.say_news()
    dead_worker = Broker(broker.client, lease_s=-1.0)
    dead_worker.take("prompts", room=1)
    scraped = running.scrape()
    assert scraped["promptmill_jobs_waiting"]["interactive", "prompts"] == 1
    assert scraped["promptmill_jobs_delayed"] == {("prompts",): 1.0}
    assert scraped["promptmill_jobs_leased"] == {(): 3.0}
    assert scraped["promptmill_leases_expired"] == {(): 1.0}
    assert scraped["promptmill_dead_letters"] == {(): 1.0}
    buried = scraped["promptmill_dead_letters_buried_total"]
    assert (buried["unknown_task",], buried["garbage",]) == (1, 0)


def test_a_limiter_s_figures(client: Any, running: Exporter, server: RedisServer) -> None:
    view = asyncio.run(use_the_limiter(server.url))
    scraped = running.scrape()

    def figure(name: str) -> float:
        return scraped[f"promptmill_limiter_{name}"][LABELS]

    permitted = scraped["promptmill_limiter_permitted_per_minute"]
    assert {dimension: permitted[dimension, *LABELS] for dimension in ("requests", "tokens")} == pytest.approx(
        dict(view.permitted_per_minute)
    )
    assert scraped["promptmill_limiter_used_last_minute"]["requests", *LABELS] > 0
    assert (figure("tokens_estimated_total"), figure("tokens_actual_total")) == (300, 240)
    assert (figure("requests_settled_total"), figure("rate_limited_total")) == (3, 1)
    assert (figure("requests_in_flight"), figure("requests_in_flight_limit")) == (view.in_flight, 8)
    assert (figure("requests_today"), figure("requests_per_day_limit")) == (view.used_today, 100)
    assert (figure("requests_waiting"), figure("processes")) == (view.waiting, 1)
    assert view.waiting > 0
    assert figure("pace_ratio") == 1
    # Both count down as time passes; a machine that is busy takes its time.
    assert 300 - PATIENCE_S < figure("pause_remaining_seconds") <= 300
    assert view.wait_s is not None
    assert view.wait_s - PATIENCE_S < figure("expected_wait_seconds") <= view.wait_s


def test_what_is_not_limited_has_no_limit(client: Any, running: Exporter, server: RedisServer) -> None:
    async def use() -> None:
        async with Redis.from_url(server.url) as other:
            await RedisSchedule(other, NAME, plan(Limits())).acquire(Ask(process="a", seq=1, went_free=2))
            await mark_listed(other, [NAME], now=time.time())

    asyncio.run(use())
    scraped = running.scrape()
    missing = {"permitted_per_minute", "requests_in_flight_limit", "requests_today", "requests_per_day_limit"}
    assert not scraped.keys() & {f"promptmill_limiter_{name}" for name in missing}
    assert scraped["promptmill_limiter_used_last_minute"]["requests", *LABELS] > 0
    assert scraped["promptmill_limiter_expected_wait_seconds"][LABELS] == 0


def dumps(client: Any) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


def test_a_scrape_changes_nothing_and_tells_no_secret(broker: Broker, running: Exporter, server: RedisServer) -> None:
    asyncio.run(use_the_limiter(server.url))
    with PromptQueue(server.url).sync as queue:
        queue.submit(id="canary-job", model="m", messages=[{"role": "user", "content": "canary prompt"}])
    broker.put(message("canary-dead", queue="prompts", body="canary"), queue="prompts")
    [(tag, _)] = broker.take("prompts", room=1)
    broker.leases.bury(tag)
    broker.say_news()
    before = dumps(broker.client)
    assert len(before) > 8
    text = running.text()
    assert dumps(broker.client) == before
    assert NAME.fingerprint in text
    assert "canary" not in text


def test_another_deployment_and_its_queues(broker: Broker, server: RedisServer) -> None:
    staging = Broker(broker.client, prefix="staging:")
    for name in ("later", "now"):
        staging.put(message(name, queue="mail"), queue="mail", step=6)
    [(tag, _)] = staging.take("mail", room=1)
    staging.leases.delay(tag, int(time.time() * 1000) + 600_000)
    staging.say_news()
    for _ in range(3):
        broker.put(message("another", queue="prompts"), queue="prompts")
    environ = {"PROMPTMILL_KEY_PREFIX": "staging:", "PROMPTMILL_REDIS_URL": server.url}
    with exporter("-Q", "prompts,mail", "--queue", "empty", environ=environ) as running:
        scraped = running.scrape()
    waiting = scraped["promptmill_jobs_waiting"]
    assert {labels: count for labels, count in waiting.items() if count} == {("6", "mail"): 1.0}
    assert len(waiting) == 12
    assert scraped["promptmill_jobs_delayed"] == {("mail",): 1.0, ("prompts",): 0.0, ("empty",): 0.0}


def test_the_text_is_openmetrics_to_the_letter(client: Any, running: Exporter, server: RedisServer) -> None:
    asyncio.run(use_the_limiter(server.url))
    text = running.text(accept="application/openmetrics-text; version=1.0.0")
    assert len({family.name for family in openmetrics_families(text)}) > 20


def test_scrapes_at_the_same_time_do_not_mind_each_other(client: Any, running: Exporter, server: RedisServer) -> None:
    asyncio.run(use_the_limiter(server.url))
    with ThreadPoolExecutor(12) as threads:
        scrapes = list(threads.map(lambda _: running.scrape(), range(24)))
    assert all(scraped["promptmill_up"] == {(): 1.0} for scraped in scrapes)
    assert len({frozenset(scraped) for scraped in scrapes}) == 1


def test_redis_is_not_there_yet_comes_and_goes_and_comes_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.close()
    try:
        with exporter("--redis", server.url) as running:
            for _ in range(2):
                for _ in range(3):
                    scraped = running.scrape()
                    assert scraped.keys() == ALWAYS
                    assert scraped["promptmill_up"] == {(): 0.0}
                server.start()
                assert running.scrape()["promptmill_up"] == {(): 1.0}
                server.close()
            code, log = running.end(signal.SIGINT)
            assert code == 0
            assert log.count("Redis can't be asked") == 2, "said once each time, not at each scrape"
            assert log.count("Redis answers again") == 2
    finally:
        server.close()


def test_a_silent_redis_holds_up_neither_a_scrape_nor_the_end(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        with exporter("--redis", server.url) as running:
            with server.frozen():
                scraped = running.scrape()
                assert scraped.keys() == ALWAYS
                assert scraped["promptmill_scrape_duration_seconds"][()] < 10, "Prometheus waits no longer"
            # Replies to what was given up must not be taken for those to what is asked now.
            with server.client() as client:
                client.lpush("prompts", "a message")
            for _ in range(3):
                assert running.scrape()["promptmill_jobs_waiting"]["interactive", "prompts"] == 1
            with server.frozen(), socket.create_connection(("127.0.0.1", urlsplit(running.url).port or 0)) as waiting:
                waiting.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
                assert running.end()[0] == 0
    finally:
        server.close()


def refused(*options: str) -> str:
    """What it says before it ends. It must be one line."""
    done = CliRunner().invoke(app, ["metrics", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    return line


def test_a_taken_port_is_named_with_the_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("--port", str(port)).startswith(f"Error: can't listen on 127.0.0.1 port {port} (")


def test_a_descriptor_that_nobody_handed_on_is_named() -> None:
    assert refused("--ready-fd", "999").startswith("Error: --ready-fd: 999 is no open file descriptor")


@pytest.mark.parametrize("host", ["nowhere.invalid", "x" * 70])
def test_a_bad_host_is_named_with_the_next_step(host: str) -> None:
    line = refused("--host", host)
    assert f"can't listen on {host} port 9464" in line
    assert "--host" in line


@pytest.mark.parametrize("url", ["http://:canary@localhost", "redis://:canary@localhost:port/0", "localhost:6379"])
def test_a_bad_url_is_refused_without_its_password(url: str) -> None:
    line = refused("--redis", url)
    assert "Redis URL" in line
    assert "--redis" in line
    assert "canary" not in line


def test_what_workers_count_is_shown_by_its_label(client: Any, running: Exporter) -> None:
    client.hset("pm:counts", mapping={"suspected_payments_total:timeout": 3, "of_a_newer_version:x": 1})
    shown = running.scrape()["promptmill_suspected_payments_total"]
    assert shown[("timeout",)] == 3
    assert shown[("connection",)] == 0


def test_jobs_in_lists_that_nobody_reads_are_shown_by_the_list(client: Any, running: Exporter) -> None:
    client.lpush("prompts:5", "a", "b")
    scraped = running.scrape()
    assert scraped["promptmill_jobs_unread"] == {("prompts:5",): 2.0}
    assert sum(scraped["promptmill_jobs_waiting"].values()) == 0
