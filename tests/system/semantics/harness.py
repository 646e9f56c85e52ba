"""Real worker processes on a real Redis, and what they left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import redis
from celery import Celery
from celery.backends.redis import RedisBackend

from tests.support import celery_client, fork_server
from tests.support import redis_server as support
from tests.support.celery_worker import CeleryWorker, lists_of
from tests.support.waiting import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celery.canvas import Signature

PACKAGE = __package__
ROOT = Path(__file__).resolve().parents[3]

TERMINAL = {"SUCCESS", "FAILURE", "REVOKED"}

ADDRESS = re.compile(r"0x[0-9a-f]+")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class QuietBackend(RedisBackend):  # type: ignore[misc]  # Celery publishes no types
    """Does not subscribe to the result of each task it sends: the tests read the records."""

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        return {}

    def remove_pending_result(self, result: Any) -> Any:
        return result


class RedisServer(support.RedisServer):
    """A private redis-server with a database for each worker."""

    DATABASES = 64

    def __init__(self, directory: Path) -> None:
        self.used = 0
        super().__init__(directory, f"databases {self.DATABASES}")

    def new_database(self) -> str:
        """The URL of a database that no other worker uses."""
        self.used += 1
        assert self.used <= self.DATABASES
        return f"redis://127.0.0.1:{self.port}/{self.used - 1}"


@dataclass
class Report:
    """What one case left behind: for each task id its result, its states in order, and what the worker recorded."""

    results: dict[str, Any] = field(default_factory=dict)
    states: dict[str, list[str]] = field(default_factory=dict)
    events: dict[str, list[Any]] = field(default_factory=dict)

    def comparable(self) -> dict[str, Any]:
        """Without memory addresses, and with random ids numbered in the order in which they appear."""
        numbers: dict[str, str] = {}
        text = ADDRESS.sub("0x", json.dumps(asdict(self), sort_keys=True))
        numbered = RANDOM_ID.sub(lambda found: numbers.setdefault(found[0], f"id-{len(numbers)}"), text)
        return cast("dict[str, Any]", json.loads(numbered))


class Side(CeleryWorker):
    """One worker process, with its own Redis database, and a plain Celery client that speaks to it."""

    def __init__(
        self,
        flavour: str,
        url: str,
        log: Path,
        *,
        concurrency: int = 8,
        options: Sequence[str] = (),
        conf: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.flavour = flavour
        self.url = url
        self.host = f"{flavour}-{log.stem}@test"
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self.app = Celery("client", broker=url, backend=f"{__name__}:QuietBackend+{url}", set_as_current=False)
        self.app.conf.update(task_default_queue="work", broker_transport_options={"socket_timeout": 30})
        self._published = self.redis.pubsub(ignore_subscribe_messages=True)
        self._published.psubscribe("celery-task-meta-*")
        self._states: dict[str, list[str]] = {}
        # It blocks: redis-py gives a connection up whose reply arrives in two parts while it only looks.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        process = fork_server.shared(("PYTHONWARNINGS", "default")).start(
            [
                *("-A", f"{PACKAGE}.app", "worker", "-n", self.host),
                *("-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat", *options),
                *(() if any(o.startswith("--autoscale") for o in options) else ("-c", str(concurrency))),
            ],
            environ={
                **os.environ,
                "SEMANTICS_FLAVOUR": flavour,
                "SEMANTICS_REDIS_URL": url,
                "SEMANTICS_CONF": json.dumps(dict(conf or {})),
                **(environment or {}),
            },
            log=log,
        )
        super().__init__(f"the {flavour} worker", process, log)

    # -- life ----------------------------------------------------------------------------------------------------------

    def wait_ready(self) -> Side:
        def ready() -> bool:
            assert self.is_alive(), f"{self.name} ended at its start:\n{self.log_text()}"
            return bool(self.redis.exists("ready"))

        wait_until(ready, f"{self.name} is ready")
        wait_until(self.answers, f"{self.name} listens to remote control")
        return self

    def answers(self) -> bool:
        return bool(self.app.control.ping([self.host], timeout=0.5))

    def close(self) -> None:
        """Stop the worker, the rough way if it must be, and close the client."""
        if self.is_alive():
            self.signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                _kill_with_children(self.process.pid)
                self.process.wait(10)
        self._published.punsubscribe()
        self._listener.join(10)
        self._published.close()
        self.redis.close()
        celery_client.close(self.app)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def signature(self, name: str, *args: Any, **kwargs: Any) -> Signature:
        return self.app.signature(name, args=args, kwargs=kwargs)

    def send(self, name: str, *args: Any, task_id: str | None = None, **options: Any) -> str:
        """Start a task and return its id."""
        return str(self.app.send_task(name, args=args, task_id=task_id, **options).id)

    def many(self, name: str, arguments: Sequence[Sequence[Any]]) -> list[str]:
        with self.app.producer_pool.acquire(block=True) as producer:
            return [self.send(name, *args, producer=producer) for args in arguments]

    def wait_results(self, *ids: str, timeout_s: float = PATIENCE_S) -> list[Any]:
        """Wait for the tasks' ends and return their values, or their exceptions."""
        keys = [f"celery-task-meta-{id_}" for id_ in ids]

        def ended() -> bool:
            records = self.redis.mget(keys)
            return all(record and json.loads(record)["status"] in TERMINAL for record in records)

        wait_until(ended, f"{len(keys)} results on {self.flavour}", timeout_s=timeout_s)
        return [self.app.backend.get_task_meta(id_, cache=False)["result"] for id_ in ids]

    def state(self, task_id: str) -> str:
        return str(self.stored(task_id).get("status"))

    def wait_running(self, task_id: str, runs: int = 1) -> None:
        wait_until(lambda: int(self.redis.get(f"runs:{task_id}") or 0) >= runs, f"{task_id} runs on {self.flavour}")

    def wait_event(self, task_id: str, name: str) -> None:
        wait_until(lambda: self.count(task_id, name), f"{name} of {task_id} on {self.flavour}")

    # -- what is left --------------------------------------------------------------------------------------------------

    def queued(self, queue: str = "work") -> int:
        """Messages that wait, of all priorities."""
        return sum(self.redis.llen(key) for key in lists_of(self.redis, queue))

    def queued_ids(self, queue: str = "work") -> Counter[str]:
        lists = lists_of(self.redis, queue)
        messages = [json.loads(message) for key in lists for message in self.redis.lrange(key, 0, -1)]
        return Counter(message["headers"]["id"] for message in messages)

    def unacknowledged(self) -> int:
        return int(self.redis.hlen("unacked"))

    def is_idle(self) -> bool:
        return self.queued() == 0 and self.unacknowledged() == 0

    def events(self, task_id: str) -> list[Any]:
        """What the worker recorded of the task: name, number of the run, fields; one run after the other."""
        recorded = [json.loads(event) for event in self.redis.lrange(f"events:{task_id}", 0, -1)]
        return sorted(recorded, key=lambda event: event[1])

    def event_names(self, task_id: str) -> list[str]:
        return [event[0] for event in self.events(task_id)]

    def count(self, task_id: str, *names: str) -> int:
        return sum(name in names for name in self.event_names(task_id))

    def states(self, task_id: str) -> list[str]:
        """The states that were published for the task, in order; one that was published again counts once.

        Stock Celery writes some ends twice (revoked on command and again on arrival), our backend only once.
        """
        return self._states.get(task_id, [])

    def _listen(self) -> None:
        for message in self._published.listen():
            published = json.loads(message["data"])
            states = self._states.setdefault(published.get("task_id"), [])
            if "status" in published and published["status"] not in states[-1:]:
                states.append(published["status"])

    def wait_published(self, task_id: str, status: str) -> None:
        wait_until(lambda: status in self.states(task_id), f"{status} of {task_id} is published")

    def stored(self, task_id: str) -> dict[str, Any]:
        """The result record without what must differ."""
        raw = self.redis.get(f"celery-task-meta-{task_id}")
        if raw is None:
            return {}
        record = json.loads(raw)
        named = {name: record.get(name) for name in ("status", "result", "task_id", "group_id")}
        return {**named, "children": record.get("children") or []}

    def settle(self, runs: Mapping[str, int]) -> None:
        """Wait until each task has ended as often as it should, and nothing waits or is unacknowledged."""

        def settled() -> bool:
            return self.is_idle() and all(self.count(id_, "postrun", "revoked") >= n for id_, n in runs.items())

        try:
            wait_until(settled, f"{dict(runs)} end on {self.flavour}")
        except AssertionError as error:
            seen = {id_: self.event_names(id_) for id_ in runs}
            left = f"queued: {self.queued()}, unacknowledged: {self.unacknowledged()}"
            raise AssertionError(f"{error}\nseen: {seen}, {left}\n{self.log_text()[-3000:]}") from None

    def report(self, runs: Mapping[str, int]) -> Report:
        """Wait for the tasks to end, then tell all about them."""
        self.settle(runs)
        report = Report()
        for id_ in runs:
            report.results[id_] = self.stored(id_)
            if status := report.results[id_].get("status"):
                self.wait_published(id_, status)
            report.states[id_] = list(self.states(id_))
            report.events[id_] = self.events(id_)
        return report

    # -- control -------------------------------------------------------------------------------------------------------

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One worker's answer to an `inspect` command."""
        answers = getattr(self.app.control.inspect(destination=[self.host], timeout=10), method)(*args, **kwargs)
        assert answers, f"No answer to {method}:\n{self.log_text()}"
        return answers[self.host]

    def control(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One worker's answer to a `control` command."""
        answers = getattr(self.app.control, method)(*args, destination=[self.host], reply=True, timeout=10, **kwargs)
        assert answers, f"No answer to {method}:\n{self.log_text()}"
        return answers[0][self.host]

    def pool(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.ask("stats")["pool"])

    def most_at_once(self, name: str, goal: int) -> int:
        """How many jobs ran at a time, when each of many waited for so many."""
        self.redis.delete("crowd:now", "crowd:most")
        self.wait_results(*self.many(name, [(goal,)] * (goal + goal // 2 + 2)))
        return int(self.redis.get("crowd:most") or 0)


def _kill_with_children(pid: int) -> None:
    worker = psutil.Process(pid)
    for process in (*worker.children(recursive=True), worker):
        with suppress(psutil.NoSuchProcess):
            process.kill()


class HangingServer:
    """Accepts HTTP requests and never answers; knows when the caller gave up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.asked = threading.Event()
        self.closed_at: float | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as caller:
            while caller.recv(4096):
                self.asked.set()
            self.closed_at = time.monotonic()

    def close(self) -> None:
        """Wait until the one caller has gone."""
        self._thread.join(10)


class Workers:
    """Starts workers, and stops them at the end."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.sides: list[Side] = []

    def launch(self, flavour: str = "ours", **options: Any) -> Side:
        """Start a worker without waiting for it."""
        log = self.directory / f"{len(self.sides)}.log"
        side = Side(flavour, self.server.new_database(), log, **options)
        self.sides.append(side)
        return side

    def start(self, flavour: str = "ours", **options: Any) -> Side:
        return self.launch(flavour, **options).wait_ready()

    def close(self) -> None:
        for side in self.sides:
            if side.process.poll() is None:
                side.signal(signal.SIGQUIT)
        for side in self.sides:
            side.close()


def closing(workers: Workers) -> Iterator[Workers]:
    try:
        yield workers
    finally:
        workers.close()
