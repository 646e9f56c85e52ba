"""Redis behind Sentinel: who the master is, asked anew for every connection, and pools whose connections ask.

The pools are redis-py's, which close idle connections to a former master. Finding the master is ours, because redis-py
keeps a connection to every sentinel open, waits for one that is frozen as long as for Redis, and says the same of a
wrong name as of a wrong address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from redis import Redis
from redis import exceptions as redis_errors
from redis import sentinel as redis_sentinel
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = [
    "AsyncMasterPool",
    "BlockingMasterPool",
    "MasterConnection",
    "MasterNotFound",
    "MasterPool",
    "Sentinels",
]

SENTINEL_TIMEOUT_S: Final = 1.0
"""A sentinel that has not answered by then is passed over for the next one."""

_READ_ONLY: Final = "READONLY"
_DEMOTED: Final = "the former master is a replica now"

Masters = Mapping[str, Mapping[str, Any]]


class MasterNotFound(redis_sentinel.MasterNotFoundError):
    """Nobody could say where the master is. The text says why, and what to do; it holds no password."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The sentinels that watch one master, and what they want to see before they answer."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)

    def __json__(self) -> str:
        """What `celery inspect` and Flower show: as an option of kombu's connection it is sent to whoever asks."""
        return str(self)


class MasterConnection(redis_sentinel.SentinelManagedConnection):
    """A connection to whoever is the master when it connects.

    redis-py's asks for the master in `connect` only, and returns to the former one where a command or a retry
    connects (redis/redis-py#3874); and it does not know a replica's refusal in the words of a script.
    """

    def _connect_retry(self) -> None:
        if self._sock is None:
            self.connect_check_health(check_health=self.connection_pool.check_connection)

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Ask, then connect. Without `retry_socket_connect`, which would try the same master again."""
        if self._sock is None:
            self.host, self.port = self.connection_pool.get_master_address()
        super().connect_check_health(check_health=check_health, retry_socket_connect=False)

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Raises ConnectionError where a replica refuses to be written to: the next try asks for the master."""
        try:
            return super().read_response(*args, **options)
        except redis_errors.ResponseError as error:
            if _READ_ONLY not in str(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call] # redis-py leaves it without types
            raise redis_errors.ConnectionError(_DEMOTED) from error


class AsyncMasterConnection(async_sentinel.SentinelManagedConnection):
    """The same on an event loop."""

    async def _connect_retry(self) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=self.connection_pool.check_connection)

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """As MasterConnection's."""
        if not self.is_connected:
            self.host, self.port = await self.connection_pool.get_master_address()
        await super().connect_check_health(check_health=check_health, retry_socket_connect=False)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As MasterConnection's."""
        try:
            return await super().read_response(*args, **options)
        except redis_errors.ResponseError as error:
            if _READ_ONLY not in str(error):
                raise
            await self.disconnect()
            raise redis_errors.ConnectionError(_DEMOTED) from error


class MasterPool(redis_sentinel.SentinelConnectionPool):
    """Connections to the master, from any thread. `options` are redis-py's, for the connections."""

    def __init__(self, sentinels: Sentinels, **options: Any) -> None:
        options.setdefault("connection_class", MasterConnection)
        super().__init__(sentinels.master_name, _Finder(sentinels), **options)  # type: ignore[no-untyped-call] # redis-py leaves it without types


class AsyncMasterPool(async_sentinel.SentinelConnectionPool):
    """The same on an event loop."""

    def __init__(self, sentinels: Sentinels, **options: Any) -> None:
        options.setdefault("connection_class", AsyncMasterConnection)
        super().__init__(sentinels.master_name, _AsyncFinder(sentinels), **options)  # type: ignore[no-untyped-call] # redis-py leaves it without types


class BlockingMasterPool(AsyncMasterPool, BlockingConnectionPool):
    """The same, where a call beyond `max_connections` waits up to `timeout` seconds for a connection."""


class _Finder:
    """What redis-py calls a sentinel manager: all that its pools ask of one is the master's address."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._search = _Search(sentinels)

    def discover_master(self, _master_name: str) -> tuple[str, int]:
        """The master's host and port. Raises MasterNotFound."""
        failures = _Failures(self._search.sentinels)
        for place in self._search.places():
            try:
                with Redis(**self._search.options(place), retry=Retry(NoBackoff(), 0)) as sentinel:
                    masters: Any = sentinel.sentinel_masters()
            except (redis_errors.RedisError, OSError) as error:
                failures.add(place, error)
                continue
            if (master := self._search.judge(masters, place, failures)) is not None:
                return master
        raise failures.verdict()


class _AsyncFinder:
    """The same on an event loop."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._search = _Search(sentinels)

    async def discover_master(self, _master_name: str) -> tuple[str, int]:
        """The master's host and port. Raises MasterNotFound."""
        failures = _Failures(self._search.sentinels)
        for place in self._search.places():
            try:
                async with AsyncRedis(**self._search.options(place), retry=AsyncRetry(NoBackoff(), 0)) as sentinel:
                    masters: Any = await sentinel.sentinel_masters()
            except (redis_errors.RedisError, OSError) as error:
                failures.add(place, error)
                continue
            if (master := self._search.judge(masters, place, failures)) is not None:
                return master
        raise failures.verdict()


class _Search:
    """Whom to ask, and what an answer means. The sentinel that knew last is asked first."""

    def __init__(self, sentinels: Sentinels) -> None:
        self.sentinels = sentinels
        self._last = sentinels.hosts[0]

    def places(self) -> Iterator[tuple[str, int]]:
        last = self._last
        yield last
        yield from (place for place in self.sentinels.hosts if place != last)

    def options(self, place: tuple[str, int]) -> dict[str, Any]:
        """Of a connection to one sentinel."""
        return {
            "host": place[0],
            "port": place[1],
            "username": self.sentinels.username,
            "password": self.sentinels.password,
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "protocol": 2,
        }

    def judge(self, masters: Masters, place: tuple[str, int], failures: _Failures) -> tuple[str, int] | None:
        state = masters.get(self.sentinels.master_name)
        if state is None:
            failures.known_names |= masters.keys()
        elif not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            failures.is_down = True
        else:
            self._last = place
            return state["ip"], int(state["port"])
        failures.answered = True
        return None


class _Failures:
    """Why a search found nothing."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self._refused = ""
        self._silent: list[str] = []
        self.answered = False
        self.is_down = False
        self.known_names: set[str] = set()

    def add(self, place: tuple[str, int], error: Exception) -> None:
        where = f"{place[0]}:{place[1]}"
        if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
            self._refused = where
        elif isinstance(error, redis_errors.ResponseError):
            self._silent.append(f"{where} is no sentinel")
        else:
            self._silent.append(f"{where}: {type(error).__name__}")

    def verdict(self) -> MasterNotFound:
        name = self._sentinels.master_name
        if self.is_down:
            return MasterNotFound(
                f"the master {name} is down, and no replica has taken over yet; if this lasts, ask a sentinel why: "
                f"redis-cli -p 26379 SENTINEL CKQUORUM {name}"
            )
        if self.answered:
            known = ", ".join(sorted(self.known_names)) or "none"
            return MasterNotFound(
                f"the sentinels know no master {name} (known: {known}); check master_name in the Redis URL"
            )
        if self._refused:
            return MasterNotFound(
                f"the sentinel at {self._refused} refused the user or password; check sentinel_username and "
                "sentinel_password in the Redis URL (what stands before the host is for Redis)"
            )
        return MasterNotFound(
            f"no sentinel answers ({', '.join(self._silent)}); check that they run, and the hosts and ports of the "
            "Redis URL"
        )
