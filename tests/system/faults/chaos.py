"""Mixed jobs under mixed faults, drawn from a seed, and what was promised about each.

The simulated providers' ledgers are the judge: every job ends once, in a state that fits what was asked; nothing is
lost; no error of ours is a result; a call beyond those that a result tells of is flagged in it; and nothing is left in
Redis that belongs to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from tasks import PromptQueue, QueueUnavailable
from tasks.wire import redis_keys
from tasks.wire.record import read_outcome
from tests.support.waiting import wait_until

from .fleet import Fleet
from .harness import MESSAGES, Providers, World
from .replicated import Replicated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from tasks.results import PromptResult

__all__ = ["Plan", "Report", "play"]

AOF_ALWAYS: Final = ("appendonly yes", "appendfsync always")
LEASE_S: Final = 2.0
ENDS_S: Final = 60.0
"""How long after the last submission the last job may end: faults at the provider hang, and limits have their time."""

READ_S: Final = 20.0

LATENCIES_MS: Final = {"steady": 150.0, "quick": 20.0, "limited": 20.0, "faulty": 50.0}
FAULTS: Final = ("429=0.01", "500=0.05", "400=0.05", "reset=0.04", "hang=0.02")
LIMITS: Final = {"limited": "{ rpm = 600 }", "faulty": "{ rpm = 60000 }"}
"""The faulty provider's is stated, so that its 429s pause the model for as long as they say and no longer."""

TIMEOUT: Final = "timeout = { total_s = 4, read_s = 2 }"
CODES: Final = {"rate_limited", "server_error", "bad_request", "connection", "timeout"}
"""How a job of the faulty provider may fail."""

SHARES: Final = {
    "plain": 36,
    "own": 12,
    "group": 16,
    "cancel": 8,
    "deadline": 6,
    "delay": 6,
    "limited": 4,
    "faulty": 8,
    "stock": 2,
    "expires": 2,
}
"""Jobs of each kind, in percent. `own` are submitted twice under their id; `stock` and `expires` come from Celery."""

SLACK_S: Final = 0.25
"""Between a client's clock at the submission and the provider's at the call."""


class Call(NamedTuple):
    """One call of a provider: when (epoch seconds), and the status that it was answered with."""

    at_s: float
    status: int | None


@dataclass
class Job:
    """One job, what was asked of it, and what was said to whoever asked."""

    kind: str
    id: str | None
    at_s: float
    options: dict[str, Any] = field(default_factory=dict)
    cancel_after_s: float | None = None
    group: str | None = None
    asked_at: float = 0.0
    """When it was first sent: a try whose reply was lost may be the one that counts."""

    cancelled: bool | None = None

    @property
    def model(self) -> str:
        return str(self.options["model"])


@dataclass(frozen=True)
class Plan:
    """Everything that a seed decides."""

    jobs: tuple[Job, ...]
    strikes: tuple[tuple[float, str], ...]
    """Seconds after the start, and the fault."""

    @classmethod
    def of(cls, seed: int, *, jobs: int, rate_per_s: float, faults: Sequence[str], stock: bool = True) -> Plan:
        """`faults` are struck in a drawn order, evenly spread. `stock`: with messages of Celery's own producers."""
        draw = random.Random(seed)
        takes_s = jobs / rate_per_s
        shares = {kind: share for kind, share in SHARES.items() if stock or kind not in {"stock", "expires"}}
        kinds = draw.choices(list(shares), weights=list(shares.values()), k=jobs)
        drawn = tuple(_job(draw, f"chaos-{seed}-{n}", kind, n / rate_per_s) for n, kind in enumerate(kinds))
        order = draw.sample(list(faults), len(faults))
        room_s = takes_s / (len(order) + 1)
        strikes = ((room_s * (n + draw.uniform(0.6, 1.4)), fault) for n, fault in enumerate(order))
        return cls(drawn, tuple(strikes))


def _job(draw: Random, job_id: str, kind: str, at_s: float) -> Job:
    has_id = kind in {"own", "stock", "expires"} or draw.random() < 0.5
    model = {"limited": "limited", "faulty": "faulty"}.get(kind) or draw.choice(("steady", "quick"))
    job = Job(kind, job_id if has_id else None, at_s, {"model": model})
    if kind not in {"stock", "expires"}:
        job.options["priority"] = draw.choice(("interactive", "normal", "bulk"))
        job.options["tenant"] = draw.choice((None, "north", "south"))
    if kind == "group":
        job.group = f"chaos-{draw.randrange(3)}"
    elif kind == "cancel":
        job.cancel_after_s = draw.uniform(0, 2)
        job.options["delay_s"] = draw.choice((0.0, 0.0, 3.0))
    elif kind == "deadline":
        job.options["deadline_s"] = draw.uniform(0.2, 6)
    elif kind == "delay":
        job.options["delay_s"] = draw.uniform(0.5, 5)
    elif kind == "expires":
        job.options["expires"] = draw.uniform(0.2, 6)
    return job


@dataclass
class Report:
    """What became of the jobs. `broken` is empty if every promise was kept."""

    submitted: int = 0
    states: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    flagged: int = 0
    wall_s: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        numbers = f"{self.submitted} jobs: {states}; {self.calls} calls, {self.flagged} flagged, {self.wall_s:.0f} s"
        return "\n".join([numbers, *(f"  BROKEN: {text}" for text in self.broken[:40])])


def play(world: World, plan: Plan, *, workers: int = 4, concurrency: int = 25, sentinel: bool = False) -> Report:
    """Run it in a world without a Redis yet."""
    began_at = time.monotonic()
    world.providers = world.enter(
        Providers(world.directory, LATENCIES_MS, options={"faulty": _fault_options()}, limits=LIMITS)
    )
    catalog = world.providers.catalog
    catalog.write_text(catalog.read_text().replace('provider = "faulty"\n', f'provider = "faulty"\n{TIMEOUT}\n'))
    servers = Replicated(world, *AOF_ALWAYS, min_replicas=True) if sentinel else None
    url = servers.url if servers is not None else world.start_redis(*AOF_ALWAYS).url
    environ = {"PROMPTMILL_LIMIT__PARK_AFTER_S": "0.5"}
    fleet = Fleet(world, size=workers, lease_s=LEASE_S, concurrency=concurrency, url=url, environ=environ)
    strikes = _strikes(world, fleet, servers)
    asyncio.run(_submit_all(world, plan, url, strikes))
    report = Report(submitted=len(plan.jobs))
    _judge(world, plan, url, report)
    report.wall_s = time.monotonic() - began_at
    return report


def _fault_options() -> list[str]:
    return [word for fault in FAULTS for word in ("--fault", fault)]


# -- faults ------------------------------------------------------------------------------------------------------------


def _strikes(world: World, fleet: Fleet, servers: Replicated | None) -> dict[str, Callable[[], object]]:
    numbers = _turns(len(fleet.workers))

    def cut() -> None:
        server = servers.replica if servers is not None and servers.is_replaced else world.server
        with contextlib.suppress(redis.RedisError):
            server.cut()

    strikes: dict[str, Callable[[], object]] = {
        "worker": lambda: fleet.kill(next(numbers)),
        "freeze": lambda: fleet.freeze(next(numbers), 1.5 * LEASE_S),
        "Redis": world.server.crash,
        "cut": cut,
    }
    if servers is not None:

        def replace(kind: str) -> None:
            servers.replace(kind)
            world.redis = world.enter(servers.replica.client())

        strikes |= {f"failover: {kind}": partial(replace, kind) for kind in ("kill", "stop", "planned")}
    return strikes


def _turns(size: int) -> Iterator[int]:
    while True:
        yield from range(size)


# -- jobs --------------------------------------------------------------------------------------------------------------


async def _submit_all(world: World, plan: Plan, url: str, strikes: dict[str, Callable[[], object]]) -> None:
    async with PromptQueue(url, timeout_s=5) as queue:
        stock = Celery("chaos", broker=url, set_as_current=False)
        stock.conf.task_default_queue = redis_keys.QUEUE
        began_at = time.monotonic()

        async def strike_all() -> None:
            for at_s, fault in plan.strikes:
                await asyncio.sleep(began_at + at_s - time.monotonic())
                await asyncio.to_thread(strikes[fault])

        async def submit(job: Job) -> None:
            await asyncio.sleep(began_at + job.at_s - time.monotonic())
            if job.kind in {"stock", "expires"}:
                await asyncio.to_thread(_submit_stock, stock, job)
            else:
                await _submit(queue, job)

        try:
            await asyncio.gather(strike_all(), *(submit(job) for job in plan.jobs))
            for group_id in sorted({job.group for job in plan.jobs if job.group}):
                await _accepted(queue.new_group(group_id).close)
        finally:
            stock.close()


async def _submit(queue: PromptQueue, job: Job) -> None:
    """Until it is accepted. Without an id of its own, what was not accepted may have arrived; nobody asks for it."""
    start = queue.submit if job.group is None else queue.new_group(job.group).submit
    job.asked_at = time.time()
    submitted = await _accepted(lambda: start(messages=MESSAGES, id=job.id, **job.options))
    job.id = submitted.id
    if job.kind == "own":
        await _accepted(lambda: start(messages=MESSAGES, **job.options, id=job.id))
    if job.cancel_after_s is not None:
        await asyncio.sleep(job.cancel_after_s)
        job.cancelled = await _accepted(submitted.cancel)


async def _accepted(call: Callable[[], Any]) -> Any:
    while True:
        try:
            return await call()
        except QueueUnavailable:
            await asyncio.sleep(0.05)


def _submit_stock(stock: Celery, job: Job) -> None:
    while True:
        with contextlib.suppress(OperationalError, redis.RedisError, OSError):
            stock.send_task(
                "prompts.chat",
                kwargs={"model": job.model, "messages": MESSAGES},
                task_id=job.id,
                expires=job.options.get("expires"),
                retry=False,
            )
            return


# -- judging -----------------------------------------------------------------------------------------------------------


def _judge(world: World, plan: Plan, url: str, report: Report) -> None:
    results = _all_ended(world, [job.id for job in plan.jobs if job.id is not None])
    calls: dict[str, list[Call]] = {}
    for model in LATENCIES_MS:
        for call in world.providers.ledger(model):
            calls.setdefault(call["job_id"], []).append(Call(call["time"], call["status"]))
    for job in plan.jobs:
        assert job.id is not None
        result = results.get(job.id)
        if result is None:
            record = world.redis.hgetall(redis_keys.job(job.id))
            told = {name: record.get(name) for name in ("state", "cancel")}
            report.broken.append(f"{job.kind} {job.id} has not ended: {told}, {len(calls.get(job.id, ()))} calls")
            continue
        report.states[result.status] += 1
        report.flagged += result.suspected_double_payment
        report.calls += len(calls.get(job.id, ()))
        report.broken += [f"{job.kind} {job.id}: {text}" for text in _faults(job, result, calls.get(job.id, []))]
    _judge_groups(plan, url, report)
    _judge_leftovers(world, report)


def _all_ended(world: World, ids: list[str]) -> dict[str, PromptResult]:
    """The results of those that end in time."""
    results: dict[str, PromptResult] = {}

    def ended() -> bool:
        missing = [job_id for job_id in ids if job_id not in results]
        records = world.redis.mget([redis_keys.result(job_id) for job_id in missing])
        read = {job_id: read_outcome(job_id, record) for job_id, record in zip(missing, records, strict=True)}
        results.update((job_id, result) for job_id, result in read.items() if result is not None)
        return len(results) == len(ids)

    with contextlib.suppress(AssertionError):
        wait_until(ended, "all end", timeout_s=ENDS_S)
    return results


def _faults(job: Job, result: PromptResult, calls: list[Call]) -> Iterator[str]:
    """What is wrong with how it ended."""
    error = result.error
    allowed = {"succeeded"}
    if job.cancelled is not None:
        allowed.add("cancelled")
    if job.kind in {"deadline", "expires"}:
        allowed.add("expired")
    if job.kind == "faulty" and error is not None and error.code in CODES:
        allowed.add("failed")
    if result.status not in allowed:
        yield f"{result.status} ({error.code if error else ''}: {error.message[:200] if error else ''})"
    if result.status == "succeeded" and not calls:
        yield "an answer without a call"
    delay_s = job.options.get("delay_s", 0.0)
    if calls and "delay_s" in job.options and min(calls).at_s < job.asked_at + delay_s - SLACK_S:
        yield f"called {job.asked_at + delay_s - min(calls).at_s:.2f} s before its time"
    if (
        result.status in {"succeeded", "failed"}
        and len(calls) > result.attempts
        and not result.suspected_double_payment
    ):
        made = ", ".join(f"{call.status} at {call.at_s - job.asked_at:.2f} s" for call in calls)
        told = ", ".join(f"{each.code} at {(each.at or 0) - job.asked_at:.2f} s" for each in result.failed_attempts)
        ended = f"{result.status} after {result.queued_s:.2f} + {result.duration_s:.2f} s"
        yield f"{len(calls)} calls ({made}), {result.attempts} of them told ({told}), not flagged; {ended}"


def _judge_groups(plan: Plan, url: str, report: Report) -> None:
    for group_id in sorted({job.group for job in plan.jobs if job.group}):
        asked = {job.id for job in plan.jobs if job.group == group_id}
        read = asyncio.run(_read_group(url, group_id))
        if missing := asked - read.keys():
            report.broken.append(f"group {group_id}: {len(missing)} of {len(asked)} are not read")
        if twice := [job_id for job_id, times in read.items() if times > 1]:
            report.broken.append(f"group {group_id}: {len(twice)} are read twice")


async def _read_group(url: str, group_id: str) -> Counter[str]:
    """How often each of its jobs is read, by a reader who has patience for 20 s."""
    read: Counter[str] = Counter()
    async with PromptQueue(url) as queue:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_S):
                async for result in queue.group(group_id).as_completed():
                    read[result.id] += 1
    return read


def _judge_leftovers(world: World, report: Report) -> None:
    try:
        world.wait_clean()
    except AssertionError:
        kept = {
            name: world.redis.zcard(name)
            for name in (redis_keys.LEASES, redis_keys.delayed(redis_keys.QUEUE), "unacked_index")
        }
        kept |= {"queued": world.queued(), "unacked": world.redis.hlen("unacked")}
        report.broken.append(f"left behind: {kept}")
    if letters := world.dead():
        report.broken.append(f"{len(letters)} dead letters: {Counter(letter.get('kind') for letter in letters)}")
    for name in world.redis.scan_iter(count=1_000):
        if world.redis.ttl(name) == -1 and not name.startswith(_KEPT):
            report.broken.append(f"the key {name} is for good")


_KEPT: Final = (
    *(
        "_kombu.binding",
        "unacked",
        redis_keys.MODELS,
        redis_keys.LEASES,
        redis_keys.FENCE,
        redis_keys.REAPER,
        redis_keys.CANCELLED,
        redis_keys.DEAD,
    ),
    *(redis_keys.DEAD_COUNTS, redis_keys.COUNTS, redis_keys.LIMITERS, redis_keys.DELAYED_PREFIX),
)
"""What has an owner for good (tasks/wire/redis_keys.py)."""
