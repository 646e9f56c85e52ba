"""Real processes to hurt: a Redis, simulated providers with their ledgers, workers, and a producer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from uuid import uuid4

import redis
from celery import Celery

from tasks import PromptQueue
from tasks.blocking import SyncJob, SyncQueue
from tasks.results import PromptResult
from tasks.wire.record import read_outcome
from tests.support import celery_client, fork_server
from tests.support.celery_worker import CeleryWorker, lists_of
from tests.support.fork_server import ForkedWorker
from tests.support.listening import started
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parents[3]
APP = f"{__package__}.app"
STOCK_APP = f"{__package__}.stock_app"

LEASE_S = 1.5
"""A quarter of the default: what takes a worker 6 s takes it 1.5 s here."""

LATENCY_MS = {"quick": 20, "steady": 300, "slow": 1_000, "slower": 4_000}
"""The simulated models, each a provider process of its own."""

API_KEY = "sk-simulated-0123456789"

MESSAGES = [{"role": "user", "content": "How much is 6 times 7?"}]


def promptmill(environ: Mapping[str, str], *arguments: str, exit_code: int = 0) -> str:
    """Run the command as an operator does, and return what it prints."""
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("promptmill")), *arguments],
        cwd=ROOT,
        env={**os.environ, "FAULTS_API_KEY": API_KEY, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == exit_code, ended.stdout + ended.stderr
    return ended.stdout


class Provider:
    """One simulated provider, and its ledger."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "workers.cli", "simulate", "--port", "0", "--jitter", "0", *options]
        self.process, self.base_url = started(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        self._url = self.base_url.removesuffix("/v1")

    def calls(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self._url}/__ledger", timeout=PATIENCE_S) as reply:
            calls: list[dict[str, Any]] = json.load(reply)["calls"]
        return calls

    def strike(self, faults: Mapping[str, float]) -> None:
        """From now on these shares of the calls go wrong."""
        body = json.dumps({"faults": faults}).encode()
        with urllib.request.urlopen(f"{self._url}/__faults", data=body, timeout=PATIENCE_S):
            pass

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Providers:
    """All simulated models, and the catalogue that names them."""

    def __init__(
        self,
        directory: Path,
        latencies_ms: Mapping[str, float] = LATENCY_MS,
        *,
        options: Mapping[str, Sequence[str]] = MappingProxyType({}),
        limits: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`options` of a model's simulator, and what the catalogue says about its limits (a TOML table)."""
        self._limits = limits
        self._providers = {
            model: Provider("--latency-ms", str(latency_ms), *options.get(model, ()))
            for model, latency_ms in latencies_ms.items()
        }
        self.catalog = directory / "catalog.toml"
        self.catalog.write_text("\n".join(map(self._entry, self._providers)))

    def _entry(self, model: str) -> str:
        url = self._providers[model].base_url
        limits = f"limits = {self._limits[model]}" if model in self._limits else ""
        return (
            f'[providers.{model}]\nbase_url = "{url}"\napi_keys = ["FAULTS_API_KEY"]\n'
            f'[models.{model}]\nprovider = "{model}"\n{limits}\n'
        )

    def calls(self, model: str) -> Counter[str]:
        """Calls of each job, finished or not."""
        return Counter(call["job_id"] for call in self._providers[model].calls())

    def ledger(self, model: str) -> list[dict[str, Any]]:
        return self._providers[model].calls()

    def close(self) -> None:
        for provider in self._providers.values():
            provider.close()


def _from_scratch(
    arguments: Sequence[str], environ: Mapping[str, str], log: Path, files: int | None
) -> subprocess.Popen[bytes]:
    limited = ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"'] if files is not None else []
    with log.open("wb") as output:
        return subprocess.Popen(
            [*limited, sys.executable, "-m", "celery", *arguments],
            cwd=ROOT,
            env=dict(environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Worker(CeleryWorker):
    """A worker process of a world."""

    def __init__(
        self, world: World, name: str, arguments: Sequence[str], environ: Mapping[str, str], files: int | None = None
    ) -> None:
        """`arguments` are those of `celery`. `files` limits how many it may open."""
        self._world = world
        log = world.directory / f"{name.partition('@')[0]}.log"
        process: subprocess.Popen[bytes] | ForkedWorker
        if files is None and "LD_PRELOAD" not in environ:
            process = fork_server.shared().start(arguments, environ=environ, log=log)
        else:
            process = _from_scratch(arguments, environ, log, files)
        super().__init__(name, process, log)

    def wait_ready(self) -> Self:
        """Until it takes jobs: it enters the table of remote control after its queues."""

        def ready() -> bool:
            assert self.process.poll() is None, f"{self.name} ended at its start:\n{self.log_text()[-3000:]}"
            return any(f"{self.name}.celery.pidbox" in member for member in self._world.bindings())

        wait_until(ready, f"{self.name} is ready")
        return self

    def close(self) -> None:
        if self.is_alive():
            self.kill()


class World:
    """One scenario's processes, all its own but the providers. Use it with `with`."""

    def __init__(self, directory: Path, providers: Providers, recorder_url: str) -> None:
        self.directory = directory
        self.providers = providers
        self._recorder_url = recorder_url
        self._closing = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        self.recorder = redis.Redis.from_url(self._recorder_url, decode_responses=True)
        self._closing.callback(self.recorder.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def enter(self, closing: Any) -> Any:
        """Close it at the scenario's end."""
        self._closing.callback(closing.close)
        return closing

    # -- parts ---------------------------------------------------------------------------------------------------------

    def start_redis(
        self, *options: str, binary: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> RedisServer:
        server = RedisServer(self.directory / "redis", *options, binary=binary, environ=environ)
        self.server: RedisServer = self.enter(server)
        self.redis = self.enter(self.server.client())
        self.queue: SyncQueue = PromptQueue(self.server.url).sync
        self._closing.callback(self.queue.close)
        return self.server

    def start_proxy(self) -> Proxy:
        proxy: Proxy = self.enter(Proxy(self.server.port))
        return proxy

    def start_worker(
        self,
        *,
        concurrency: int = 20,
        url: str | None = None,
        environ: Mapping[str, str] | None = None,
        app: str = APP,
        options: Sequence[str] = (),
        files: int | None = None,
        wait: bool = True,
        **transport_options: Any,
    ) -> Worker:
        self._count += 1
        name = f"w{self._count}-{uuid4().hex[:6]}@faults"
        arguments = ["-A", app, "worker", "-n", name, "-c", str(concurrency), "-l", "WARNING", *options]
        if app != STOCK_APP:
            transport_options = {"lease_s": LEASE_S, **transport_options}
        worker = Worker(
            self,
            name,
            arguments,
            {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PROMPTMILL_REDIS_URL": url or self.server.url,
                "PROMPTMILL_CATALOG": str(self.providers.catalog),
                "FAULTS_API_KEY": API_KEY,
                "FAULTS_TRANSPORT_OPTIONS": json.dumps(transport_options),
                "FAULTS_RECORDER": self._recorder_url,
                **(environ or {}),
            },
            files,
        )
        self.enter(worker)
        return worker.wait_ready() if wait else worker

    def start_stock_worker(self, **transport_options: Any) -> Worker:
        """A worker of plain Celery, on kombu's own Redis transport."""
        return self.start_worker(
            app="tests.system.faults.stock_app", options=["-P", "threads"], concurrency=4, **transport_options
        )

    def celery(self, **transport_options: Any) -> Celery:
        """A plain Celery client of the queue."""
        url = self.server.url
        client = Celery("client", broker=url, backend=url, set_as_current=False)
        self._closing.callback(celery_client.close, client)
        client.conf.update(task_default_queue="prompts", broker_transport_options=transport_options)
        return client

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(self, n: int, *, model: str, **options: Any) -> list[SyncJob]:
        return [self.queue.submit(model=model, messages=MESSAGES, **options) for _ in range(n)]

    def results(self, jobs: Sequence[SyncJob]) -> list[PromptResult]:
        """How all of them ended. Waits."""

        def ended() -> list[PromptResult] | None:
            found = self.stored(jobs)
            return [result for result in found if result is not None] if None not in found else None

        results: list[PromptResult] = wait_until(ended, f"{len(jobs)} jobs end")
        return results

    def stored(self, jobs: Sequence[SyncJob]) -> list[PromptResult | None]:
        try:
            records = self.redis.mget([f"celery-task-meta-{job.id}" for job in jobs])
        except redis.RedisError:
            return [None]
        return [read_outcome(job.id, record) for job, record in zip(jobs, records, strict=True)]

    def count_ended(self, jobs: Sequence[SyncJob]) -> int:
        return sum(result is not None for result in self.stored(jobs))

    def wait_ended(self, jobs: Sequence[SyncJob], count: int) -> None:
        wait_until(lambda: self.count_ended(jobs) >= count, f"{count} jobs have ended")

    def calls(self, jobs: Sequence[SyncJob], *, model: str) -> list[int]:
        """How often the provider was called for each job."""
        calls = self.providers.calls(model)
        return [calls[job.id] for job in jobs]

    def wait_in_flight(self, jobs: Sequence[SyncJob], *, model: str) -> None:
        """Until the provider has a call of each."""
        wait_until(lambda: all(self.calls(jobs, model=model)), f"{len(jobs)} calls are in flight")

    def starts(self, task_id: str) -> list[float]:
        """When the task of `tests.system.faults.app` was started (monotonic clock, s)."""
        return [float(at) for at in self.recorder.lrange(f"starts:{task_id}", 0, -1)]

    def wait_started(self, task_id: str, times: int = 1) -> None:
        wait_until(lambda: len(self.starts(task_id)) >= times, f"{task_id} starts for time {times}")

    def bindings(self) -> set[str]:
        try:
            tables = self.redis.keys("*_kombu.binding.celery.pidbox")  # a key prefix may stand before it
            return set(self.redis.sunion(tables)) if tables else set()
        except redis.RedisError:
            return set()

    def queued(self, queue: str = "prompts") -> int:
        """Messages that wait, of all priorities."""
        return sum(self.redis.llen(name) for name in lists_of(self.redis, queue))

    def wait_clean(self) -> None:
        """Until no message is left in a list, under a lease or delayed."""

        def leftovers() -> bool:
            kept = self.redis.hlen("unacked") + self.redis.zcard("unacked_index") + self.redis.zcard("pm:leases")
            return self.queued() + kept + self.redis.zcard("pm:delayed:prompts") == 0

        wait_until(leftovers, "nothing is left behind")

    def dead(self) -> list[dict[str, Any]]:
        return [json.loads(letter) for letter in self.redis.lrange("pm:dead", 0, -1)]


@contextlib.contextmanager
def published(server: RedisServer, job_id: str) -> Iterator[list[str]]:
    """The states that are published for a job while the block runs; read them after it."""
    channel = f"celery-task-meta-{job_id}"
    states: list[str] = []
    with server.client() as client, client.pubsub() as listener:
        listener.subscribe(channel)
        assert listener.get_message(timeout=PATIENCE_S)["type"] == "subscribe"
        yield states
        client.publish(channel, "that is all")
        for message in listener.listen():
            if message["data"] == "that is all":
                break
            states.append(json.loads(message["data"])["status"])
