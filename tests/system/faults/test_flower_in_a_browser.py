"""Flower as an operator sees it: each page in a browser, with a job in each state. Promises.md rows 9 and 24."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Request, Response

from tests.support.browser import NoBrowser, is_required, open_browser
from tests.support.ports import free_port
from tests.support.waiting import wait_until

from .harness import API_KEY, Providers
from .test_flower import LOGIN, page, start_flower, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery.result import AsyncResult
    from playwright.sync_api import BrowserContext, Page

    from tasks.blocking import SyncJob

    from .harness import World

PROMPT = "a canary hums in the lamp room"
MESSAGES = [{"role": "user", "content": PROMPT}]
LATENCY_MS = {"quick": 20, "broken": 20, "endless": 600_000}
FAULTS = {"broken": ["--fault", "400=1"]}
NAME = "prompts.chat"

API = ("api/workers?refresh=1", "api/tasks", "api/task/types", "api/queues/length", "metrics", "healthcheck")


def test_every_page_of_flower_in_a_browser(world: World) -> None:
    world.start_redis()
    providers = world.enter(Providers(world.directory, LATENCY_MS, options=FAULTS))
    url = f"http://127.0.0.1:{free_port()}"
    environ = {"PROMPTMILL_CATALOG": str(providers.catalog)}
    worker = world.start_worker(concurrency=1, app="workers", options=["-E"], environ=environ, wait=False)
    start_flower(world, "flower", f"--port={urlsplit(url).port}", FLOWER_BASIC_AUTH=LOGIN)
    wait_until(lambda: status_of(f"{url}/workers") == 401, "Flower asks for a password")
    worker.wait_ready()
    wait_until(lambda: worker.name in page(f"{url}/workers"), "Flower hears the worker")
    states = {job.id: state for job, state in _a_job_in_each_state(world).items()}
    wait_until(lambda: states == _states_shown(url), "Flower has heard of each job that a worker took")
    try:
        with open_browser() as browser:
            username, password = LOGIN.split(":")
            login: Any = {
                "username": username,
                "password": password,
                "send": "always",
            }  # Flower's API asks nobody for one
            context = browser.new_context(http_credentials=login)
            context.set_default_timeout(30_000)
            visitor = Visitor(context, url)
            _visit(visitor, worker.name, states)
    except NoBrowser as reason:
        (pytest.fail if is_required() else pytest.skip)(str(reason))
    assert visitor.complaints == []
    for path, text in visitor.seen.items():
        assert PROMPT not in text and API_KEY not in text, path
        assert "not supported" not in text, path


def _visit(visitor: Visitor, worker: str, states: Mapping[str, str]) -> None:
    """Open each page, and look whether it shows what is so."""
    for overview in ("", "workers"):
        with visitor.open(overview) as shown:
            shown.wait_for_function("document.querySelector('#workers-online').textContent == '1'")
    with visitor.open(f"worker/{worker}") as shown:
        for tab in shown.locator("[id^=worker-tab-]").all():
            tab.click()
    with visitor.open("tasks") as shown:
        shown.wait_for_selector(f"#tasks-table tbody tr:nth-child({len(states)})")
        rows = shown.locator("#tasks-table tbody tr").all_inner_texts()
        assert len(rows) == len(states)
        assert all(NAME in row and any(i in row and state in row for i, state in states.items()) for row in rows)
    for job_id, state in states.items():
        with visitor.open(f"task/{job_id}") as shown:
            assert shown.locator(".task-name-value").inner_text() == NAME
            assert shown.locator(".badge").first.inner_text() == state
    with visitor.open("broker") as shown:
        assert shown.locator("#queue-table tbody td").all_inner_texts()[:2] == ["prompts", "3"]
    for path in (*API, *(f"api/task/{about}/{job_id}" for about in ("info", "result") for job_id in states)):
        visitor.read(path)


def _a_job_in_each_state(world: World) -> dict[SyncJob | AsyncResult[object], str]:
    """With the states that Flower shows of those that a worker has taken. The worker has one place, and three wait."""

    def submit(model: str, **options: Any) -> SyncJob:
        return world.queue.submit(model=model, messages=MESSAGES, **options)

    done, failed = submit("quick"), submit("broken")
    assert [result.status for result in world.results([done, failed])] == ["succeeded", "failed"]
    # A stock producer puts the arguments' repr into the headers, which events are made of.
    stock = world.celery().send_task(NAME, kwargs={"model": "quick", "messages": MESSAGES})
    stock.get(timeout=30)
    stopped = submit("endless")
    wait_until(lambda: stopped.status() == "running", "a job runs")
    never_run = submit("quick")
    never_run.cancel()
    assert world.results([never_run])[0].status == "cancelled"
    running = submit("endless")
    stopped.cancel()
    wait_until(lambda: running.status() == "running", "the next job runs", timeout_s=180)
    for priority in ("interactive", "normal", "bulk"):
        submit("quick", priority=priority)
    return {
        done: "SUCCESS",
        stock: "SUCCESS",
        failed: "FAILURE",
        stopped: "REVOKED",
        never_run: "REVOKED",
        running: "STARTED",
    }


def _states_shown(url: str) -> dict[str, str]:
    return {job_id: task["state"] for job_id, task in json.loads(page(f"{url}/api/tasks")).items()}


class Visitor:
    """Opens pages, and keeps what they show and what the browser complains of."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.seen: dict[str, str] = {}
        self.complaints: list[str] = []
        self._context = context
        self._url = url
        self._page = self._new_page()

    def _new_page(self) -> Page:
        page = self._context.new_page()
        complain = self.complaints.append

        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                complain(f"{page.url}: {message.text}")

        def on_request(request: Request) -> None:
            if not self._is_ours(request.url):
                complain(f"{page.url} asks {request.url}")

        def on_response(reply: Response) -> None:
            if reply.status >= 400:
                complain(f"{reply.url}: {reply.status}")

        page.on("pageerror", lambda error: complain(f"{page.url}: {error}"))
        page.on("console", on_console)
        page.on("request", on_request)
        page.on("response", on_response)
        return page

    def _is_ours(self, url: str) -> bool:
        return url.startswith(self._url) or urlsplit(url).scheme in ("data", "blob")

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Page]:
        """Keeps the page as its scripts have made it until the block ends."""
        self._page.goto(f"{self._url}/{path}")
        yield self._page
        self.seen[path] = self._page.content()

    def read(self, path: str) -> str:
        """A page without scripts, through the browser's session."""
        reply = self._context.request.get(f"{self._url}/{path}")
        text = reply.text()
        assert reply.status == 200, f"{path}: {reply.status} {text}"
        self.seen[path] = text
        return text
