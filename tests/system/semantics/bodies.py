"""The tasks under test. Each of those marked `@both` exists as a `def` and, with `_async`, as a coroutine."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import aiohttp
from celery import Task, chord, current_task, group
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from . import recording
from .app import app, both, task

store = recording.store


def arrive(task_id: str) -> int:
    """Count a run of the task's body."""
    return int(store.incr(f"runs:{task_id}"))


# -- returning -------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "float": 1.5,
    "big": 2**70,
    "text": "Grüße 你好 \N{GRINNING FACE} \x00",
    "nested": {"a": [1, {"b": [None, True]}], "": {}},
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    "date": date(2026, 1, 2),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "decimal": Decimal("1.10"),
    "bytes": b"\x00\xff",
    "tuple": (1, 2),
    "int_keys": {1: "one"},
    "unencodable": object,
}


@both()
def give(self: Task, kind: str) -> Any:
    return VALUES[kind]


@both()
def echo(self: Task, *args: Any, **kwargs: Any) -> Any:
    return {"args": list(args), "kwargs": kwargs}


@both()
def add(self: Task, x: int, y: int) -> int:
    return x + y


@both()
def total(self: Task, numbers: list[int]) -> int:
    return sum(numbers)


@both()
def about_request(self: Task, *args: Any, **kwargs: Any) -> Any:
    return recording.request_fields(self.request)


@both()
def silent(self: Task) -> str:
    store.set(f"silent:{self.request.id}", "ran")
    return "nobody hears this"


@both(acks_late=False)
def early(self: Task, *, fails: bool = False) -> str:
    if fails:
        raise ValueError("acknowledged before it failed")
    return "acknowledged before it ran"


@both(acks_on_failure_or_timeout=False)
def unacknowledged_failure(self: Task) -> None:
    raise ValueError("its message is rejected")


@both(track_started=True)
def progress(self: Task) -> str:
    self.update_state(state="PROGRESS", meta={"done": 1})
    self.update_state(state="HALFWAY", meta={"done": 2})
    return "done"


@both(rate_limit="20/s")
def limited(self: Task) -> float:
    return time.time()


@app.task(name="foreign", bind=True, base=Task)
def foreign(self: Task, x: int) -> list[Any]:
    """On Celery's own base class, which knows nothing of the bridge."""
    return [x, self.request.id, current_task.request.id]


# -- raising ---------------------------------------------------------------------------------------------------------


class Unpicklable(Exception):
    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.lock = lock


class Custom(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code, hint)
        self.code = code
        self.hint = hint


class OwnBase(BaseException):
    pass


RAISES: dict[str, Any] = {
    "value": lambda: ValueError("no", 1),
    "key": lambda: KeyError("missing"),
    "unpicklable": lambda: Unpicklable(threading.Lock()),
    "custom": lambda: Custom(7, hint="try again"),
    "os": lambda: FileNotFoundError(2, "No such file", "/nowhere"),
    "timeout": lambda: TimeoutError("late"),
    "group": lambda: ExceptionGroup("many", [ValueError(1), KeyError(2)]),
    "stop": lambda: StopIteration("end"),
    "ignore": lambda: Ignore("quietly"),
    "reject": lambda: Reject("unwanted", requeue=False),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": lambda: asyncio.CancelledError("by myself"),
    "generator_exit": GeneratorExit,
    "memory": lambda: MemoryError("too much"),
    "own_base": lambda: OwnBase("not an Exception"),
}


@both()
def fail(self: Task, kind: str) -> None:
    raise RAISES[kind]()


@both()
def reject_once(self: Task) -> int:
    runs = arrive(self.request.id)
    if runs == 1:
        raise Reject("not yet", requeue=True)
    return runs


@both(max_retries=5)
def retry_until(self: Task, times: int, *, countdown: float = 0.0) -> int:
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


@both(max_retries=1, default_retry_delay=0)
def retry_in_vain(self: Task, *, with_exc: bool) -> None:
    raise self.retry(exc=ValueError("still broken") if with_exc else None)


@both(max_retries=3, default_retry_delay=0)
def retry_after_error(self: Task) -> str:
    """The usual idiom: an error is caught and retried."""
    try:
        if self.request.retries < 2:
            raise ConnectionError("refused")
    except ConnectionError as exc:
        raise self.retry(exc=exc) from exc
    return "connected"


@both(autoretry_for=(ConnectionError,), retry_backoff=1, retry_jitter=False, max_retries=1)
def autoretry(self: Task, *, succeeds: bool) -> str:
    if succeeds and self.request.retries:
        return "connected"
    raise ConnectionError("refused")


@both(autoretry_for=(Exception,), dont_autoretry_for=(KeyError,), default_retry_delay=0, max_retries=1)
def autoretry_but(self: Task, kind: str) -> None:
    raise RAISES[kind]()


# -- canvas ----------------------------------------------------------------------------------------------------------


@both()
def replaced(self: Task, x: int) -> None:
    raise self.replace(add.s(x, 1))


@both()
def replaced_by_group(self: Task, x: int) -> None:
    raise self.replace(group(add.s(x, n) for n in range(3)) | total.s())


@both()
def spawn_chord(self: Task, x: int) -> str:
    """A chord that a running task starts; its body's id is the caller's."""
    return str(chord([add.s(x, n) for n in range(3)])(total.s()).id)


@both()
def errback(self: Task, failed_id: str) -> str:
    store.rpush(f"errback:{self.request.id}", failed_id)
    return failed_id


# -- ending early ----------------------------------------------------------------------------------------------------


@task(name="nap")
def nap(self: Task, seconds: float) -> str:
    """A `def` that sleeps."""
    try:
        arrive(self.request.id)
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "caught"
    store.incr("ended")
    return "slept"


@task()
async def nap_async(self: Task, seconds: float) -> str:
    try:
        arrive(self.request.id)
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "caught"
    store.incr("ended")
    return "slept"


@task(acks_late=False)
async def early_nap(self: Task, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return arrive(self.request.id)


@task(name="slow_once", acks_on_failure_or_timeout=False)
def slow_once(self: Task) -> str:
    """Too slow at first; its message goes back to the queue, and it runs again."""
    if arrive(self.request.id) == 1:
        time.sleep(4)
    return "quick"


@task()
async def nap_uncaught(self: Task, seconds: float) -> None:
    arrive(self.request.id)
    await asyncio.sleep(seconds)


@task()
async def hold(self: Task, key: str) -> str:
    """Returns as soon as it is told to. It only reads: Redis may be refusing writes."""
    arrive(self.request.id)
    while not store.exists(key):
        await asyncio.sleep(0.005)
    return "held"


@task()
async def gated(self: Task) -> str:
    """Runs until the test opens the gate."""
    arrive(self.request.id)
    while not store.exists("gate"):
        await asyncio.sleep(0.005)
    store.incr("ended")
    return "through"


@task()
def gated_def(self: Task) -> str:
    arrive(self.request.id)
    while not store.exists("gate"):
        time.sleep(0.005)
    store.incr("ended")
    return "through"


@task()
async def fetch(self: Task, url: str) -> str:
    """An HTTP call that hangs. Its clean-up waits: a second cancellation would interrupt it."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.text()
    finally:
        await asyncio.sleep(0.1)
        store.rpush(f"cleaned:{self.request.id}", current_task.request.id)


@task()
async def stubborn(self: Task, seconds: float) -> str:
    """Swallows one cancellation."""
    arrive(self.request.id)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        store.rpush(f"swallowed:{self.request.id}", "1")
        try:
            await asyncio.sleep(seconds)
        finally:
            store.rpush(f"swallowed:{self.request.id}", "2")
    return "never told"


@task()
async def yielding(self: Task, seconds: float) -> str:
    """Swallows its cancellation and returns at once."""
    arrive(self.request.id)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        store.set(f"swallowed:{self.request.id}", "1")
    return "returned all the same"


@task()
async def interrupted_twice(self: Task, seconds: float) -> list[Any]:
    """Counts how often a soft time limit reaches it, and whether its own timeouts still work afterwards."""
    arrive(self.request.id)
    limits = 0
    for _ in range(2):
        try:
            await asyncio.sleep(seconds)
        except SoftTimeLimitExceeded:
            limits += 1
    task_ = asyncio.current_task()
    timed_out = False
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)
    except TimeoutError:
        timed_out = True
    return [limits, timed_out, task_.cancelling() if task_ else None]


@task()
async def stray_exit(self: Task) -> str:
    """Leaves a sub-task behind that ends the process, as far as asyncio is concerned."""

    async def leave() -> None:
        raise SystemExit(9)

    background.add(asyncio.get_running_loop().create_task(leave()))
    await asyncio.sleep(0.05)
    return "survived"


@task()
async def leave_running(self: Task) -> str:
    """Leaves a sub-task behind that runs for ever."""

    async def run_on() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            store.set("leftover:cancelled", "1")

    background.add(asyncio.get_running_loop().create_task(run_on()))
    return "left"


background: set[asyncio.Task[Any]] = set()


# -- who am I --------------------------------------------------------------------------------------------------------


@task()
async def whereabouts(self: Task) -> list[str]:
    """The id of the running task, as code in all the places of a coroutine finds it."""

    async def child() -> str:
        await asyncio.sleep(0.01)
        return str(current_task.request.id)

    async def grandchild() -> str:
        first, _ = await asyncio.gather(child(), asyncio.sleep(0))
        return first

    def in_thread() -> str:
        return str(current_task.request.id)

    async with asyncio.TaskGroup() as tasks:
        grouped = tasks.create_task(grandchild())
    return [
        self.request.id,
        current_task.request.id,
        *await asyncio.gather(child(), grandchild()),
        await asyncio.create_task(child()),
        grouped.result(),
        await asyncio.to_thread(in_thread),
        await asyncio.wait_for(child(), 5),
    ]


@both()
def prerun_mark(self: Task) -> str:
    return recording.prerun_mark.get()


@task()
async def unique(self: Task, n: int, seconds: float) -> list[Any]:
    before = [self.request.id, self.request.args]
    await asyncio.sleep(seconds)
    after = [self.request.id, self.request.args]
    return [n, before == after, current_task.request.id, threading.current_thread().name]


@both()
def where(self: Task) -> list[Any]:
    return [os.getpid(), threading.current_thread().name]


TAKE_PLACE = store.register_script("""
local now = redis.call('INCR', KEYS[1])
local most = tonumber(redis.call('GET', KEYS[2]) or '0')
if now > most then redis.call('SET', KEYS[2], now) end
return now
""")


CROWD_TIMEOUT_S = 5.0

LINGER_S = 0.1
"""Time for one too many to come in."""


@task()
async def crowd(self: Task, goal: int) -> None:
    """Stays until so many have been here at a time."""
    TAKE_PLACE(keys=["crowd:now", "crowd:most"])
    until = time.monotonic() + CROWD_TIMEOUT_S
    while int(store.get("crowd:most") or 0) < goal and time.monotonic() < until:
        await asyncio.sleep(0.02)
    await asyncio.sleep(LINGER_S)
    store.decr("crowd:now")


@task()
def crowd_def(self: Task, goal: int) -> None:
    TAKE_PLACE(keys=["crowd:now", "crowd:most"])
    until = time.monotonic() + CROWD_TIMEOUT_S
    while int(store.get("crowd:most") or 0) < goal and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(LINGER_S)
    store.decr("crowd:now")


# -- a failure that two jobs share -----------------------------------------------------------------------------------

shared: dict[str, asyncio.Future[None]] = {}


@task()
async def share_failure(self: Task, key: str, *, leads: bool, catches: bool) -> str:
    """Two jobs await one future, as when the second asks for what the first is fetching already."""
    if leads:
        shared[key] = asyncio.get_running_loop().create_future()
    while key not in shared:
        await asyncio.sleep(0.001)
    store.incr(f"shared:{key}")
    if leads:
        while int(store.get(f"shared:{key}") or 0) < 2:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.02, shared[key].set_exception, ConnectionError("the shared one"))
    try:
        await shared[key]
    except ConnectionError:
        if not catches:
            raise
        await asyncio.sleep(0.2)
        return "fell back"
    return "never"
