"""The processes that a run needs beside itself: Redis, the simulated provider, the workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError

from config.catalog import Catalog
from config.settings import Settings
from tasks.redis.address import Address
from tasks.redis.sentinel import MasterNotFound
from tasks.wire.message import ping_message, revoke_channel

from ..errors import UnusableInput
from ..options import RunOptions
from ..output.state import RunState
from .environ import engine_environ
from .fleet import WorkerFleet
from .lifeline import Lifeline
from .redis_server import RedisServer
from .simulation import Simulator, simulated_catalog

__all__ = ["Services", "running_services"]

IDLE_STOP_S = 3.0
REDIS_TIMEOUT_S = 5.0

LOOKS, LOOK_AGAIN_S = 10, 0.2
"""A worker that has just said what it offers listens a moment later."""


@dataclass(frozen=True, slots=True)
class Services:
    """What is running for us; a part is None where the run uses somebody else's, or none."""

    redis_url: str
    redis: Redis
    redis_server: RedisServer | None
    simulator: Simulator | None
    fleet: WorkerFleet | None

    async def watch(self) -> None:
        """Returns never, unless there is nothing to watch; raises `RunError` when one of them has failed."""
        watched = [part.wait() for part in (self.redis_server, self.simulator) if part is not None]
        if self.fleet is not None:
            watched.append(self.fleet.watch())
        await asyncio.gather(*watched)


@asynccontextmanager
async def running_services(
    options: RunOptions,
    *,
    settings: Settings,
    catalog: Catalog | None,
    state: RunState,
    say: Callable[[str], None],
) -> AsyncIterator[Services]:
    """Start what the run needs, and stop it again however the run ends. `say` is for what people should know."""
    async with AsyncExitStack() as stack:
        lifeline = Lifeline()
        lifeline.open()
        stack.push_async_callback(lifeline.close)
        starter = _Starter(options, settings, catalog, state, say, lifeline, stack)
        yield await starter.start()


@dataclass(frozen=True, slots=True)
class _Starter:
    """What the start of each service needs to know, and where its end is noted."""

    options: RunOptions
    settings: Settings
    catalog: Catalog | None
    state: RunState
    say: Callable[[str], None]
    lifeline: Lifeline
    stack: AsyncExitStack

    async def start(self) -> Services:
        server, simulator = await asyncio.gather(self._redis_server(), self._simulator())
        url = server.url if server is not None else str(self.options.redis)
        redis = await self.stack.enter_async_context(
            Address.of(url).async_client(socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
        )
        await _check_reachable(redis, url)
        return Services(url, redis, server, simulator, await self._fleet(url, redis, simulator))

    async def _redis_server(self) -> RedisServer | None:
        if self.options.redis is not None:
            return None
        server = await RedisServer.start(self.state.redis, lifeline=self.lifeline, log=self.state.log("redis"))
        self.stack.push_async_callback(server.stop)
        return server

    async def _simulator(self) -> Simulator | None:
        if self.options.simulation is None:
            return None
        simulator = await Simulator.start(self.options.simulation, lifeline=self.lifeline, state=self.state)
        self.stack.push_async_callback(simulator.stop)
        return simulator

    async def _fleet(self, url: str, redis: Redis, simulator: Simulator | None) -> WorkerFleet | None:
        if self.options.workers == 0:
            await _check_workers(redis, url, key_prefix=self.settings.key_prefix)
            return None
        fleet = WorkerFleet(
            size=self.options.workers,
            concurrency=self.options.concurrency or self.settings.concurrency,
            environ=engine_environ(**self._worker_settings(url, simulator)),
            lifeline=self.lifeline,
            state=self.state,
            say=self.say,
        )
        self.stack.push_async_callback(fleet.stop, grace_s=IDLE_STOP_S)
        await fleet.start(redis, key_prefix=self.settings.key_prefix)
        return fleet

    def _worker_settings(self, url: str, simulator: Simulator | None) -> dict[str, str]:
        # All three URLs, because `.env` may hold the more particular ones, which stand over the general one.
        environ = {f"PROMPTMILL_{name}_URL": url for name in ("REDIS", "BROKER", "RESULT")}
        simulation = self.options.simulation
        if simulator is not None and simulation is not None and self.catalog is not None:
            text = simulated_catalog(
                self.catalog,
                url=simulator.url,
                limits=simulation.limits(),
                kind=simulation.kind,
                structured_outputs=simulation.structured_outputs,
                apis=simulation.apis,
            )
            environ |= self._catalog_file(text)
        elif (server := self.options.own_server) is not None:
            environ |= self._catalog_file(server.catalog_text())
        return environ

    def _catalog_file(self, text: str) -> dict[str, str]:
        self.state.catalog.write_text(text, encoding="utf-8")
        return {"PROMPTMILL_CATALOG": str(self.state.catalog)}


async def _check_reachable(redis: Redis, url: str) -> None:
    try:
        await redis.ping()
    except MasterNotFound as error:
        raise UnusableInput(f"--redis: {error}.") from None
    except (RedisError, OSError) as error:
        refused = isinstance(error, AuthenticationError | AuthorizationError)
        reason = "refused the user or password" if refused else "can't be reached"
        raise UnusableInput(f"Redis at {Address.of(url)} {reason}. Check that it runs, and --redis.") from None


async def _check_workers(redis: Redis, url: str, *, key_prefix: str) -> None:
    """Ask all workers for a sign of life; Redis says how many there are to hear it."""
    address = Address.of(url)
    for _ in range(LOOKS):
        if await redis.publish(revoke_channel(key_prefix, address.database), ping_message()):
            return
        await asyncio.sleep(LOOK_AGAIN_S)
    raise UnusableInput(
        f"--workers 0 uses workers that run already, and none listens at {address}. Start one "
        "(celery -A workers worker), check --redis and PROMPTMILL_KEY_PREFIX, or leave out --workers 0."
    )
