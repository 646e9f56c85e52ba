"""The worker processes of a run: `celery -A workers worker`, several of them."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ..beside import either
from ..errors import RunError
from ..output.state import RunState
from .lifeline import Child, Lifeline, log_tail

__all__ = ["WorkerFleet"]

READY_TIMEOUT_S = 60.0
READY_LOOK_S = 0.02
MAX_RESTARTS = 3
"""In all, for the whole fleet: what kills a fourth process would kill the fifth."""

COLD_STOP_S = 3.0

REMOTE_CONTROL_BINDINGS = "_kombu.binding.celery.pidbox"
"""kombu's set of the workers that listen for remote control. A worker enters it once it takes jobs
(celery/worker/consumer: the step `Control` comes after `Tasks`)."""


class WorkerFleet:
    """Starts workers, starts them again when one dies, and stops them. `say` tells people of a death."""

    def __init__(
        self,
        *,
        size: int,
        concurrency: int,
        environ: Mapping[str, str],
        lifeline: Lifeline,
        state: RunState,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._concurrency = concurrency
        self._environ = environ
        self._lifeline = lifeline
        self._state = state
        self._say = say
        # Names of an earlier run may still stand in Redis, so each run has its own.
        run = secrets.token_hex(3)
        self._names = [f"run-{run}-{number}@localhost" for number in range(1, size + 1)]
        self._workers: dict[str, Child] = {}
        self._restarts = 0
        self._stopping = False

    async def start(self, redis: Redis, *, key_prefix: str) -> None:
        """Start all and wait until each takes jobs. Raises `RunError` with its log if one ends instead."""
        for name in self._names:
            self._start(name)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._until_ready(redis, key_prefix)
        except TimeoutError:
            raise self._failure(self._names[0], f"was not ready within {READY_TIMEOUT_S:g} s") from None

    async def watch(self) -> None:
        """Keep all running until the fleet is stopped. Raises `RunError` when too many have died."""
        await asyncio.gather(*map(self._watch, self._names))

    async def stop(self, *, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """TERM: finish what is being answered, hand back the rest. After `grace_s`, or once `hurry` is set,
        QUIT hands that back too; KILL ends who is still there."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        if not await self._gone_within(grace_s, hurry):
            self._signal(signal.SIGQUIT)
            if not await self._gone_within(COLD_STOP_S, None):
                self._signal(signal.SIGKILL)
        await self._all_gone()

    def _start(self, name: str) -> None:
        command = (
            *(sys.executable, "-P", "-m", "celery", "-A", "workers", "worker"),
            *("-n", name, "-c", str(self._concurrency), "-l", "WARNING"),
        )
        self._workers[name] = self._lifeline.start(command, kind="worker", log=self._log(name), environ=self._environ)

    async def _until_ready(self, redis: Redis, key_prefix: str) -> None:
        while not await self._all_ready(redis, key_prefix):  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(READY_LOOK_S)

    async def _all_ready(self, redis: Redis, key_prefix: str) -> bool:
        for name, worker in self._workers.items():
            if worker.has_ended:
                raise self._failure(name, f"ended at its start (exit code {await worker.wait()})")
        try:
            bindings: set[Any] = await redis.smembers(key_prefix + REMOTE_CONTROL_BINDINGS)
        except RedisError as error:
            raise RunError(f"Redis does not answer while the workers start: {error}") from None
        queues = b"\n".join(bindings)
        return all(f"{name}.celery.pidbox".encode() in queues for name in self._names)

    async def _watch(self, name: str) -> None:
        while True:
            code = await self._workers[name].wait()
            if self._stopping:
                return
            self._restarts += 1
            if self._restarts > MAX_RESTARTS:
                raise self._failure(name, f"died (exit code {code}), after {MAX_RESTARTS} restarts of workers")
            self._say(f"A worker died (exit code {code}) and is started again; others take its jobs over.")
            self._start(name)

    async def _gone_within(self, time_s: float, hurry: asyncio.Event | None) -> bool:
        """Whether all are gone once the time is up or somebody is in a hurry."""
        try:
            async with asyncio.timeout(time_s):
                await either(self._all_gone(), *([hurry.wait()] if hurry is not None else []))
        except TimeoutError:
            return False
        return all(worker.has_ended for worker in self._workers.values())

    async def _all_gone(self) -> None:
        await asyncio.gather(*(worker.wait() for worker in self._workers.values()))

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            if not worker.has_ended:
                worker.signal(number)

    def _log(self, name: str) -> Path:
        return self._state.log(name.partition("@")[0])

    def _failure(self, name: str, what: str) -> RunError:
        return RunError(f"A worker {what}. Its last words:\n{log_tail(self._log(name))}")
