"""How an idle worker waits: `python -m tests.soak.waiting`.

First our worker as it is: commands a second and CPU while idle, and the time from sending a task to its start. Then the
ways to learn that a list is no longer empty, on bare connections (docs/adr/0003-waiting-on-empty-queues.md).
"""

from __future__ import annotations

import contextlib
import select
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import redis

from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.system.faults.harness import Providers, World

IDLE_S = 10.0
ROUNDS = 200
WAITERS = 10
LISTS = ("jobs", "jobs3", "jobs6", "jobs9")


def main() -> None:
    with contextlib.ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="waiting-")))
        providers = Providers(directory, {"quick": 0})
        closing.callback(providers.close)
        recorder = RedisServer(directory / "recorder")
        closing.callback(recorder.close)
        with World(directory, providers, recorder.url) as world:
            _measure_worker(world)
        _measure_ways(recorder)


def _commands(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


def _heard(client: redis.Redis, seconds: float) -> Counter[str]:
    """The commands that clients send meanwhile, without those that scripts call."""
    names: Counter[str] = Counter()
    with client.monitor() as monitor:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            command = monitor.next_command()
            if command["client_type"] != "lua":
                names[command["command"].split()[0].upper()] += 1
    return names


def _redis_cpu_s(client: redis.Redis) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def _measure_worker(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=100, lease_s=6.0)
    process = psutil.Process(worker.pid)
    time.sleep(2)  # it has settled
    cpu, names = process.cpu_times(), _heard(world.redis, IDLE_S)
    now = process.cpu_times()
    idle_cpu = (now.user + now.system - cpu.user - cpu.system) / IDLE_S
    share = f"{names.total() / IDLE_S:.1f} commands/s ({dict(names)} in {IDLE_S:g} s)"
    print(f"idle worker: {share}, CPU {100 * idle_cpu:.2f} %")
    client = world.celery()
    delays_ms = []
    for _ in range(100):
        task_id = str(time.monotonic_ns())
        sent_at = time.monotonic()
        client.send_task("tests.system.faults.app.nap", args=[0], task_id=task_id)
        world.wait_started(task_id)
        delays_ms.append((world.starts(task_id)[0] - sent_at) * 1000)
        time.sleep(0.05)  # until the queue is waited for again
    print(f"wake-up, from send_task to the task's first line: {_percentiles(delays_ms)}")


def _percentiles(values_ms: list[float]) -> str:
    values_ms = sorted(values_ms)
    return f"p50 {statistics.median(values_ms):6.2f} ms, p99 {values_ms[int(len(values_ms) * 0.99)]:6.2f} ms"


class Waiter(threading.Thread):
    """One idle worker: learns of a message in some way, then takes it."""

    def __init__(self, port: int, wait: Callable[[Waiter], Iterator[None]]) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.client: Any = redis.Redis(port=port)
        self.taken: list[tuple[bytes, float]] = []
        self.stopping = False
        self._wait = wait

    def connection(self) -> Any:
        connection = self.client.connection_pool.connection_class(port=self.port, protocol=2)
        connection.connect()
        return connection

    def run(self) -> None:
        with contextlib.suppress(redis.ConnectionError, OSError):
            for _ in self._wait(self):
                if self.stopping:
                    return
                while (raw := self.client.rpop(LISTS[0])) is not None:
                    self.taken.append((raw, time.monotonic()))


def _ask(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def by_tracking(waiter: Waiter) -> Iterator[None]:
    wake, commands = waiter.connection(), waiter.connection()
    client_id = _ask(wake, "CLIENT", "ID")
    _ask(wake, "SUBSCRIBE", "__redis__:invalidate")
    _ask(commands, "CLIENT", "TRACKING", "ON", "REDIRECT", client_id)
    while True:
        if not _ask(commands, "EXISTS", *LISTS):
            select.select([wake._sock], [], [], 1.0)
            while wake.can_read(timeout=0):
                wake.read_response()
        yield


def by_moving_onto_itself(waiter: Waiter) -> Iterator[None]:
    connections = [waiter.connection() for _ in LISTS]
    for connection, name in zip(connections, LISTS, strict=True):
        connection.send_command("BLMOVE", name, name, "RIGHT", "RIGHT", 1)
    while True:
        ready, _, _ = select.select([connection._sock for connection in connections], [], [], 1.0)
        yield
        for connection, name in zip(connections, LISTS, strict=True):
            if connection._sock in ready:
                connection.read_response()
                connection.send_command("BLMOVE", name, name, "RIGHT", "RIGHT", 1)


def by_keyspace_notifications(waiter: Waiter) -> Iterator[None]:
    wake = waiter.connection()
    for name in LISTS:
        _ask(wake, "SUBSCRIBE", f"__keyspace@0__:{name}")
    while True:
        yield
        select.select([wake._sock], [], [], 1.0)
        while wake.can_read(timeout=0):
            wake.read_response()


def by_polling(every_s: float) -> Callable[[Waiter], Iterator[None]]:
    def wait(waiter: Waiter) -> Iterator[None]:
        while True:
            yield
            time.sleep(every_s)  # that is what polling is

    return wait


WAYS: dict[str, Callable[[Waiter], Iterator[None]]] = {
    "CLIENT TRACKING": by_tracking,
    "BLMOVE onto itself": by_moving_onto_itself,
    "keyspace notifications": by_keyspace_notifications,
    "polling every 30 ms": by_polling(0.03),
    "polling every 200 ms": by_polling(0.2),
}


def _measure_ways(server: RedisServer) -> None:
    print(f"\n{'way':<24}{'idle cmd/s':>12}{'p50 ms':>10}{'p99 ms':>10}{f'Redis us/message, {WAITERS} waiters':>34}")
    for name, way in WAYS.items():
        with server.client() as client:
            client.flushall()
            client.config_set("notify-keyspace-events", "Kl" if "keyspace" in name else "")
            idle, delays_ms = _one_waiter(server, client, way)
            cost_us = _many_waiters(server, client, way)
        delays_ms = sorted(delays_ms)
        p50, p99 = statistics.median(delays_ms), delays_ms[int(len(delays_ms) * 0.99)]
        print(f"{name:<24}{idle:>12.1f}{p50:>10.2f}{p99:>10.2f}{cost_us:>34.0f}")


@contextlib.contextmanager
def _waiting(server: RedisServer, way: Callable[[Waiter], Iterator[None]], n: int) -> Iterator[list[Waiter]]:
    waiters = [Waiter(server.port, way) for _ in range(n)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.5)  # all wait
    yield waiters
    for waiter in waiters:
        waiter.stopping = True
    for waiter in waiters:
        waiter.join(3)
        waiter.client.close()


def _have_taken(waiters: Sequence[Any], count: int) -> bool:
    return sum(len(waiter.taken) for waiter in waiters) >= count


def _one_waiter(server: RedisServer, client: redis.Redis, way: Any) -> tuple[float, list[float]]:
    with _waiting(server, way, 1) as (waiter,):
        commands = _commands(client)
        time.sleep(3)
        idle = (_commands(client) - commands - 1) / 3
        delays_ms = []
        for number in range(ROUNDS):
            sent_at = time.monotonic()
            client.lpush(LISTS[0], number)
            wait_until(partial(_have_taken, [waiter], number + 1), "it is taken")
            delays_ms.append((waiter.taken[number][1] - sent_at) * 1000)
    return idle, delays_ms


def _many_waiters(server: RedisServer, client: redis.Redis, way: Any) -> float:
    """Redis's CPU for each message, when one at a time meets so many idle workers; its idle share is taken off."""
    with _waiting(server, way, WAITERS) as waiters:
        before = _redis_cpu_s(client)
        time.sleep(2)
        idle_share = (_redis_cpu_s(client) - before) / 2
        before, began_at = _redis_cpu_s(client), time.monotonic()
        for number in range(ROUNDS):
            client.lpush(LISTS[0], number)
            wait_until(partial(_have_taken, waiters, number + 1), "it is taken")
        spent_s = _redis_cpu_s(client) - before - idle_share * (time.monotonic() - began_at)
    return spent_s / ROUNDS * 1e6


if __name__ == "__main__":
    main()
