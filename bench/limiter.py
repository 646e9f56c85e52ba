"""The shared limiter's figures: several real processes, hundreds of waiters each, one strict provider.

    python -m bench.limiter                      every scenario of ours, and the others beside it, one after the other
    python -m bench.limiter --only tpm --seconds 40

The provider counts by `workers.simulator.limits`, in this process, over a loopback socket. Each call reaches it with a
random delay, because networks do not keep instants. `limits` and `pyrate-limiter` take part where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import math
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import uvloop
from redis.asyncio import Redis

from config.catalog import Limits, Model
from tasks.results import Usage
from workers.limiter import LimiterRegistry
from workers.simulator.limits import WINDOW_S, Allowance, Bucket

from .redis_server import RedisServer, running_redis

HOST = "127.0.0.1"
STOP_GRACE_S = 5.0
WARM_UP_S = 5.0
POLL_S = 0.1
"""How often a waiter of a limiter that cannot wait asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One measurement. `algorithm` is how the provider counts, `told` what our catalogue says about it."""

    name: str
    contestant: str = "ours"
    processes: int = 4
    waiters: int = 500
    rpm: int | None = 12_000
    tpm: int | None = None
    algorithm: str = "bucket"
    told: Literal["bucket", "sliding", "fixed", "unknown"] = "unknown"
    seconds: float = 20.0
    latency_s: float = 0.1
    jitter_s: float = 0.010
    mean_output_tokens: float = 0.0
    max_tokens: int = 4_096
    kill_after_s: float | None = None
    refuse_after_s: float | None = None
    retry_after_s: float = 3.0


RATE = Scenario(name="12,000 rpm, bucket of 1 s")
SCENARIOS = (
    RATE,
    replace(RATE, name="12,000 rpm, bucket of 0.1 s", algorithm="fine"),
    replace(RATE, name="12,000 rpm, sliding", algorithm="sliding", seconds=75.0),
    replace(RATE, name="12,000 rpm, fixed", algorithm="fixed", seconds=75.0),
    replace(RATE, name="1,200 rpm, bucket of 1 s", rpm=1_200, waiters=50, seconds=30.0),
    replace(RATE, name="1,200 rpm, fixed", rpm=1_200, waiters=50, algorithm="fixed", seconds=75.0),
    Scenario(
        name="200,000 tpm, sliding", rpm=None, tpm=200_000, waiters=50, algorithm="sliding", told="sliding",
        mean_output_tokens=500.0, latency_s=1.0, seconds=130.0,
    ),
    Scenario(
        name="200,000 tpm, bucket", rpm=None, tpm=200_000, waiters=50, told="bucket",
        mean_output_tokens=500.0, latency_s=1.0, seconds=60.0,
    ),
    replace(RATE, name="kill -9 of one of four", algorithm="sliding", kill_after_s=10.0),
    replace(RATE, name="429, Retry-After 3", refuse_after_s=10.0),
)  # fmt: skip
OTHERS = tuple(
    replace(
        RATE, name=f"1,200 rpm, {algorithm}: {contestant}", contestant=contestant, rpm=1_200, waiters=50,
        algorithm=algorithm, seconds=75.0,
    )
    for contestant in ("split", "limits", "pyrate-limiter")
    for algorithm in ("bucket", "fixed")
)  # fmt: skip


# ---- the provider


@dataclass(slots=True)
class Call:
    """One call as the provider saw it; `at` in seconds of its monotonic clock."""

    at: float
    process: int
    waiter: int
    tokens: int
    admitted: bool


@dataclass(slots=True)
class StrictProvider:
    """Counts, refuses with Retry-After, answers late. One line a call: `number process waiter tokens`."""

    scenario: Scenario
    allowance: Allowance
    calls: list[Call] = field(default_factory=list)
    refuse_one: bool = False
    refused_at: float | None = None

    @classmethod
    def of(cls, scenario: Scenario) -> StrictProvider:
        if scenario.algorithm == "fine":
            assert scenario.rpm is not None, "a bucket of 0.1 s counts requests"
            per_s = scenario.rpm / WINDOW_S
            return cls(scenario, Allowance(requests=Bucket(scenario.rpm, capacity=max(1.0, per_s / 10))))
        phase_s = random.uniform(0, WINDOW_S)
        algorithm: Any = scenario.algorithm
        return cls(scenario, Allowance.of(algorithm=algorithm, rpm=scenario.rpm, tpm=scenario.tpm, phase_s=phase_s))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while line := await reader.readline():
                loop.call_later(random.uniform(0, self.scenario.jitter_s), self._arrive, line, writer)
        writer.close()

    def _arrive(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number, process, waiter, tokens = map(int, line.split())
        now = time.monotonic()
        if self.refuse_one:
            self.refuse_one, self.refused_at = False, now
            return self._answer(writer, f"{number} 429 {self.scenario.retry_after_s}\n")
        refusal = self.allowance.admit(now, tokens=tokens)
        self.calls.append(Call(now, process, waiter, tokens, refusal is None))
        if refusal is not None:
            return self._answer(writer, f"{number} 429 {max(0.001, refusal.wait_s):.3f}\n")
        latency_s = self.scenario.latency_s * random.uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(latency_s, self._answer, writer, f"{number} 200 0\n")
        return None

    @staticmethod
    def _answer(writer: asyncio.StreamWriter, line: str) -> None:
        if not writer.is_closing():
            writer.write(line.encode())


class ProviderClient:
    """All calls of one process over one connection."""

    def __init__(self, writer: asyncio.StreamWriter, process: int) -> None:
        self._writer = writer
        self._process = process
        self._number = 0
        self._answers: dict[int, asyncio.Future[tuple[int, float]]] = {}

    @classmethod
    async def connect(cls, port: int, process: int) -> tuple[ProviderClient, asyncio.Task[None]]:
        reader, writer = await asyncio.open_connection(HOST, port)
        client = cls(writer, process)
        return client, asyncio.create_task(client._listen(reader))

    async def call(self, waiter: int, tokens: int) -> tuple[int, float]:
        """Status and Retry-After (s)."""
        self._number += 1
        answer: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        self._writer.write(f"{self._number} {self._process} {waiter} {tokens}\n".encode())
        return await answer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            number, status, retry_after_s = line.split()
            answer = self._answers.pop(int(number))
            if not answer.done():
                answer.set_result((int(status), float(retry_after_s)))


# ---- the contestants: each is a coroutine that lives one waiter's life


@dataclass(slots=True)
class Worker:
    """One process's part of a scenario."""

    scenario: Scenario
    redis: Redis
    client: ProviderClient
    round_trips: int = 0
    grants: int = 0
    stale: int = 0


@asynccontextmanager
async def ours(worker: Worker) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    scenario = worker.scenario
    limits = Limits(rpm=scenario.rpm, tpm=scenario.tpm, algorithm=scenario.told)
    model = Model(name="bench", provider="bench", upstream="bench", limits=limits)
    async with LimiterRegistry(worker.redis, now=time.time) as registry:

        async def once(waiter: int) -> None:
            usage = _usage(scenario)
            cost = registry.estimate(model, input_chars=4 * usage.input_tokens, max_tokens=scenario.max_tokens)
            permit = await registry.admit(model, [None], cost=cost)
            status, retry_after_s = await worker.client.call(waiter, usage.input_tokens + usage.output_tokens)
            if status == 429:
                permit.rate_limited(retry_after_s, {})
            else:
                permit.settle(usage)

        yield once
        (limiter,) = registry._limiters.values()  # the benchmark alone looks inside
        worker.round_trips, worker.grants = limiter.tally.calls, limiter.tally.granted
        worker.stale = limiter.tally.stale


@asynccontextmanager
async def split(worker: Worker) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Each process keeps to its share of the rate, evenly spaced, and knows of nobody."""
    assert worker.scenario.rpm is not None, "counts requests"
    gap_s = 60.0 / worker.scenario.rpm * worker.scenario.processes
    next_at = 0.0

    async def once(waiter: int) -> None:
        nonlocal next_at
        next_at = max(next_at + gap_s, time.monotonic())
        await asyncio.sleep(next_at - time.monotonic())
        worker.grants += 1
        await _call_and_obey(worker, waiter)

    yield once


@asynccontextmanager
async def limits_library(worker: Worker) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """`limits`: a moving window; it cannot wait, so its waiters poll."""
    limits, aio = importlib.import_module("limits"), importlib.import_module("limits.aio")
    storage = aio.storage.RedisStorage(f"async+{_url(worker.redis)}", implementation="redispy")
    item = limits.RateLimitItemPerMinute(worker.scenario.rpm)
    limiter = aio.strategies.MovingWindowRateLimiter(storage)

    async def once(waiter: int) -> None:
        while not await limiter.hit(item, "bench"):  # noqa: ASYNC110 - it has no way to wait
            await asyncio.sleep(POLL_S)
        worker.grants += 1
        await _call_and_obey(worker, waiter)

    yield once


@asynccontextmanager
async def pyrate(worker: Worker) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """`pyrate-limiter`: a bucket in Redis; it waits by sleeping until its bucket has room."""
    assert worker.scenario.rpm is not None, "counts requests"
    library = importlib.import_module("pyrate_limiter")
    rates = [library.Rate(worker.scenario.rpm, 60_000)]
    limiter = library.Limiter(await library.RedisBucket.init(rates, worker.redis, "bench"))

    async def once(waiter: int) -> None:
        while not await limiter.try_acquire_async("bench", blocking=False):  # noqa: ASYNC110 - its wait holds a lock
            await asyncio.sleep(POLL_S)
        worker.grants += 1
        await _call_and_obey(worker, waiter)

    yield once


CONTESTANTS = {"ours": ours, "split": split, "limits": limits_library, "pyrate-limiter": pyrate}
MODULES = {"limits": "limits", "pyrate-limiter": "pyrate_limiter"}


async def _call_and_obey(worker: Worker, waiter: int) -> None:
    status, retry_after_s = await worker.client.call(waiter, 0)
    if status == 429:
        await asyncio.sleep(min(retry_after_s, 5.0))


def _usage(scenario: Scenario) -> Usage:
    if not scenario.mean_output_tokens:
        return Usage()
    # Log-normal with sigma 1 has its mean at exp(mu + 1/2).
    output = random.lognormvariate(math.log(scenario.mean_output_tokens) - 0.5, 1.0)
    return Usage(input_tokens=random.randint(20, 80), output_tokens=min(scenario.max_tokens, int(output) + 1))


def _url(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/0"


# ---- one process


async def live(scenario: Scenario, *, index: int, redis_url: str, port: int) -> dict[str, int]:
    """Run all waiters until SIGTERM."""
    random.seed(index)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    client, listening = await ProviderClient.connect(port, index)
    async with Redis.from_url(redis_url) as redis, _contest(scenario, redis, client) as (worker, once):
        waiters = [asyncio.create_task(_forever(once, number)) for number in range(scenario.waiters)]
        _say("ready")
        before_s = time.process_time()
        await stopped.wait()
        cpu_us = int((time.process_time() - before_s) * 1e6)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
    listening.cancel()
    counts = {"round_trips": worker.round_trips, "grants": worker.grants, "stale": worker.stale}
    return {**counts, "cpu_us": cpu_us}


@asynccontextmanager
async def _contest(
    scenario: Scenario, redis: Redis, client: ProviderClient
) -> AsyncIterator[tuple[Worker, Callable[[int], Awaitable[None]]]]:
    worker = Worker(scenario, redis, client)
    async with CONTESTANTS[scenario.contestant](worker) as once:
        yield worker, once


async def _forever(once: Callable[[int], Awaitable[None]], waiter: int) -> None:
    while True:
        await once(waiter)


# ---- one scenario


@dataclass(slots=True)
class Outcome:
    """What a scenario has shown; shares between 0 and 1."""

    scenario: Scenario
    used_share: float
    rejected: int
    round_trips_per_grant: float
    jain_processes: float
    jain_waiters: float
    stale: int
    cpu_us_per_grant: float
    note: str = ""


async def measure(scenario: Scenario) -> Outcome:
    """Run one scenario from an empty Redis."""
    provider = StrictProvider.of(scenario)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-limiter-")))
        redis = await stack.enter_async_context(running_redis(folder))
        server = await asyncio.start_server(provider.serve, HOST, 0)
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
        children = [await _start(scenario, index, redis.url, port) for index in range(scenario.processes)]
        before = await _commands(redis)
        started_at = time.monotonic()
        events = await _let_run(scenario, provider, children)
        sums = await _finish(children)
        commands = await _commands(redis) - before
    return _judge(provider, started_at, events, sums, commands)


async def _start(scenario: Scenario, index: int, redis_url: str, port: int) -> asyncio.subprocess.Process:
    part = {"scenario": asdict(scenario), "index": index, "redis_url": redis_url, "port": port}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.limiter", "--live", json.dumps(part), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None, "started with a pipe"
    await child.stdout.readline()
    return child


async def _let_run(
    scenario: Scenario, provider: StrictProvider, children: list[asyncio.subprocess.Process]
) -> dict[str, float]:
    events: dict[str, float] = {}
    ends_at = time.monotonic() + scenario.seconds
    if scenario.kill_after_s is not None:
        await asyncio.sleep(scenario.kill_after_s)
        children[0].kill()
        events["killed"] = time.monotonic()
    if scenario.refuse_after_s is not None:
        await asyncio.sleep(scenario.refuse_after_s)
        provider.refuse_one = True
    await asyncio.sleep(ends_at - time.monotonic())
    return events


async def _finish(children: list[asyncio.subprocess.Process]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for child in children:
        with suppress(ProcessLookupError):
            child.terminate()
    for child in children:
        output = await _output(child)
        if output.strip():
            sums.update(json.loads(output))
    return sums


async def _output(child: asyncio.subprocess.Process) -> bytes:
    """Nothing from one that can't be stopped in time: waiters of other limiters swallow their cancellation."""
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            output, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        return b""
    return output


async def _commands(redis: RedisServer) -> Counter[str]:
    stats = await redis.client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()})


def _judge(
    provider: StrictProvider,
    started_at: float,
    events: dict[str, float],
    sums: Counter[str],
    commands: Counter[str],
) -> Outcome:
    scenario = provider.scenario
    begins, ends = started_at + WARM_UP_S, started_at + scenario.seconds
    counted = [call for call in provider.calls if begins <= call.at < ends and call.admitted]
    grants = sum(call.admitted for call in provider.calls)
    by_process = Counter(call.process for call in counted)
    by_waiter = Counter((call.process, call.waiter) for call in counted)
    everybody = [by_waiter[process, waiter] for process in by_process for waiter in range(scenario.waiters)]
    round_trips = sums["round_trips"] or sum(commands[name] for name in ("evalsha", "eval", "zrangebyscore", "time"))
    return Outcome(
        scenario=scenario,
        used_share=_used_share(scenario, counted, ends - begins),
        rejected=sum(not call.admitted for call in provider.calls),
        round_trips_per_grant=round_trips / max(1, sums["grants"] or grants),
        jain_processes=jain(by_process.values()),
        jain_waiters=jain(everybody),
        stale=sums["stale"],
        cpu_us_per_grant=sums["cpu_us"] / max(1, grants),
        note=_note(provider, events),
    )


def _used_share(scenario: Scenario, calls: Sequence[Call], time_s: float) -> float:
    if scenario.tpm is not None:
        return sum(call.tokens for call in calls) / (scenario.tpm / WINDOW_S * time_s)
    assert scenario.rpm is not None, "one of the two is limited"
    return len(calls) / (scenario.rpm / WINDOW_S * time_s)


def _note(provider: StrictProvider, events: dict[str, float]) -> str:
    scenario = provider.scenario
    if (killed_at := events.get("killed")) is not None:
        lost_s = _lost_s(provider.calls, killed_at, per_s=(scenario.rpm or 0) / WINDOW_S)
        worst = most_in_window(provider.calls)
        return f"lost {lost_s:.2f} s of capacity in the 3 s after it; most in any 60 s: {worst} of {scenario.rpm}"
    if (refused_at := provider.refused_at) is not None:
        over = refused_at + scenario.retry_after_s
        leaked = [call for call in provider.calls if refused_at + 0.1 < call.at < over]
        first_100_ms = sum(over <= call.at < over + 0.1 for call in provider.calls)
        in_1_s = sum(over <= call.at < over + 1.0 for call in provider.calls)
        return f"{len(leaked)} leaked from 100 ms on; after the pause {first_100_ms} in 0.1 s, {in_1_s} in 1 s"
    return ""


def _lost_s(calls: Iterable[Call], killed_at: float, *, per_s: float) -> float:
    after = sum(killed_at <= call.at < killed_at + 3.0 for call in calls)
    return 3.0 - after / per_s


def most_in_window(calls: Iterable[Call]) -> int:
    """The most that passed in any window of a minute."""
    window: deque[float] = deque()
    most = 0
    for at in sorted(call.at for call in calls if call.admitted):
        window.append(at)
        while window[0] <= at - WINDOW_S:
            window.popleft()
        most = max(most, len(window))
    return most


def jain(counts: Iterable[int]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1/n when one has all."""
    values = list(counts)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


# ---- the command


def main() -> None:
    """Parse and run."""
    options = _parser().parse_args()
    if options.live:
        part = json.loads(options.live)
        scenario = Scenario(**part.pop("scenario"))
        _say(json.dumps(uvloop.run(live(scenario, **part))))
        return
    chosen = [each for each in (*SCENARIOS, *OTHERS) if options.only in each.name]
    _say(f"{'':44}{'used':>7}{'429s':>7}{'trips/grant':>12}{'Jain K':>8}{'Jain W':>8}{'stale':>7}{'us/grant':>9}")
    for scenario in chosen:
        module = MODULES.get(scenario.contestant)
        if module is not None and importlib.util.find_spec(module) is None:
            _say(f"{scenario.name:44}not installed")
            continue
        seconds = scenario.seconds if options.seconds is None else options.seconds
        _print(asyncio.run(measure(replace(scenario, seconds=seconds))))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _print(outcome: Outcome) -> None:
    _say(
        f"{outcome.scenario.name:44}{outcome.used_share:>7.1%}{outcome.rejected:>7}"
        f"{outcome.round_trips_per_grant:>12.3f}{outcome.jain_processes:>8.3f}{outcome.jain_waiters:>8.3f}"
        f"{outcome.stale:>7}{outcome.cpu_us_per_grant:>9.0f}  {outcome.note}",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.limiter", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the scenarios whose name contains this")
    parser.add_argument("--seconds", type=float, help="how long each runs (default: the scenario's own time)")
    parser.add_argument("--live", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
