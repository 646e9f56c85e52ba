"""Flower, started as an operator does: never open by oversight, and without prompts. Promises.md rows 9 and 24."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until

from .harness import API_KEY, Worker, promptmill

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .harness import World

PROMPT = "the canary sings in gallery twelve"
LOGIN = "operator:canary-password-33aa"


def start_flower(world: World, name: str, *options: str, **environ: str) -> Worker:
    """The process, not yet ready."""
    arguments = ["-A", "workers", "flower", "--debug", *options]
    flower: Worker = world.enter(
        Worker(world, name, arguments, {**os.environ, "PROMPTMILL_REDIS_URL": world.server.url, **environ})
    )
    return flower


def test_flower_without_a_password_does_not_start(world: World) -> None:
    world.start_redis()
    variants: list[tuple[list[str], Mapping[str, str]]] = [
        ([], {"FLOWER_UNAUTHENTICATED_API": "true"}),
        (["--address=127.0.0.1"], {}),
        (["--basic-auth="], {}),
        ([], {"FLOWER_BASIC_AUTH": "operator:secret,guest:"}),
    ]
    flowers = [
        start_flower(world, f"flower-{number}", f"--port={free_port()}", *options, **environ)
        for number, (options, environ) in enumerate(variants)
    ]
    for flower in flowers:
        assert flower.wait_exit() == 1
        assert "Flower has no password" in flower.log_text()
        assert "Set FLOWER_BASIC_AUTH=user:password" in flower.log_text()
        assert "Visit me" not in flower.log_text(), "it never listened"


@pytest.mark.promise(24)
def test_flower_with_a_password_runs_and_shows_no_prompt(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=2, app="workers", options=["-E"])
    url = f"http://127.0.0.1:{free_port()}"
    flower = start_flower(world, "flower", f"--port={url.rpartition(':')[2]}", FLOWER_BASIC_AUTH=LOGIN)
    wait_until(lambda: status_of(f"{url}/workers") == 401, "Flower asks for a password")
    assert status_of(f"{url}/api/workers") == 401
    wait_until(lambda: worker.name in page(f"{url}/workers"), "Flower hears the worker")
    job = world.queue.submit(model="quick", messages=[{"role": "user", "content": PROMPT}])
    assert world.results([job])[0].ok
    wait_until(lambda: '"SUCCESS"' in page(f"{url}/api/tasks"), "Flower has heard of the job's end")
    paths = (f"task/{job.id}", "api/tasks", f"api/task/info/{job.id}", "tasks", f"worker/{worker.name}")
    pages = [page(f"{url}/{path}") for path in paths]
    assert all(job.id in text for text in pages[:3])
    for text in (*pages, flower.log_text(), worker.log_text()):
        assert PROMPT not in text and API_KEY not in text
    assert LOGIN.partition(":")[2] not in flower.log_text()
    [finding] = examined(world, url, exit_code=0)
    assert finding["level"] == "ok"


@pytest.mark.covers("setting", "allow_open_flower", "flower_url")
def test_an_open_flower_is_allowed_by_name_and_found_by_doctor(world: World) -> None:
    world.start_redis()
    url = f"http://127.0.0.1:{free_port()}"
    flower = start_flower(world, "flower", f"--port={url.rpartition(':')[2]}", PROMPTMILL_ALLOW_OPEN_FLOWER="true")
    flower.wait_logged("Flower has no password")
    wait_until(lambda: status_of(f"{url}/workers") == 200, "Flower runs")
    [finding] = examined(world, url.replace("//", "//somebody:canary-1c@"), exit_code=1)
    assert finding["level"] == "refused"
    assert finding["text"].startswith(f"{url} answers everybody.")
    [finding] = examined(world, f"http://127.0.0.1:{free_port()}", exit_code=0)
    assert finding["level"] == "ok"


def examined(world: World, flower_url: str, *, exit_code: int) -> list[dict[str, str]]:
    """What `promptmill doctor` finds about Flower."""
    environ = {
        "PROMPTMILL_REDIS_URL": world.server.url,
        "PROMPTMILL_CATALOG": str(world.providers.catalog),
        "PROMPTMILL_FLOWER_URL": flower_url,
    }
    findings = json.loads(promptmill(environ, "doctor", "--json", exit_code=exit_code))["findings"]
    return [finding for finding in findings if finding["subject"] == "Flower"]


def page(url: str) -> str:
    """As the operator sees it."""
    login = base64.b64encode(LOGIN.encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        text: str = reply.read().decode()
    return text


def status_of(url: str) -> int:
    """As a stranger sees it; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_every_page_of_flower_opens_with_the_right_queue_lengths(world: World) -> None:
    world.start_redis()
    url = f"http://127.0.0.1:{free_port()}"
    worker = world.start_worker(concurrency=1, app="workers", options=["-E"])
    start_flower(world, "flower", f"--port={url.rpartition(':')[2]}", FLOWER_BASIC_AUTH=LOGIN)
    wait_until(lambda: status_of(f"{url}/workers") == 401, "Flower asks for a password")
    wait_until(lambda: worker.name in page(f"{url}/workers"), "Flower hears the worker")
    submit = world.queue.submit
    running = submit(model="slower", messages=[{"role": "user", "content": PROMPT}])
    wait_until(lambda: running.status() == "running", "the first job runs")
    waiting = [
        submit(model="slower", messages=[{"role": "user", "content": PROMPT}], priority=priority)
        for priority in ("interactive", "normal", "bulk")
    ]
    lengths = json.loads(page(f"{url}/api/queues/length"))["active_queues"]
    assert [(queue["name"], queue["messages"]) for queue in lengths] == [("prompts", len(waiting))]
    opened = {path: page(f"{url}/{path}") for path in PAGES} | {
        f"task/{running.id}": page(f"{url}/task/{running.id}"),
        f"worker/{worker.name}": page(f"{url}/worker/{worker.name}"),
    }
    assert re.search(r"<td>prompts</td>\s*<td[^>]*>\s*3\s*</td>", opened["broker"])
    for path, text in opened.items():
        assert PROMPT not in text, path
        assert "not supported" not in text, path
    for job in (running, *waiting):
        job.cancel()


PAGES = ("", "workers", "tasks", "broker", "metrics", "healthcheck", "api/workers", "api/tasks", "api/task/types")
