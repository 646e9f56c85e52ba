"""Redis behind Sentinel: who the master is, asked anew for every connection, and pools whose connections ask.

The pools are redis-py's. Finding the master is ours, because redis-py waits for a sentinel that is frozen as long as
for Redis, believes one that is behind the others, and says the same of a wrong name as of a wrong address. So is
hearing that there is another one (`master_watch.py`).
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
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

from .master_watch import Master, MasterWatch

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

LOOK_S: Final = 1.0
"""How often a sentinel is asked, each in its turn: one that is cut off from the others hears of nothing."""

AGAIN_S: Final = 10.0

_NEWS: Final = ("+try-failover", "+failover-state-*", "+promoted-slave", "+switch-master", "-failover-abort-*")
"""What a sentinel says of a failover, from some 100 ms before the replica is promoted."""

_REFUSALS: Final = {
    "READONLY": "the former master is a replica now",
    "NOREPLICAS": "NOREPLICAS: too few replicas are in step with the master for it to take writes",
}
"""What a master says that was replaced, or may have been, in a word of Redis's own; in a script's reply it stands
somewhere in the text."""

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
        try:
            self.connection_pool.sentinel_manager.watch.admit(self)
        except redis_errors.ConnectionError:
            self.disconnect()  # type: ignore[no-untyped-call] # redis-py leaves it without types
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Raises ConnectionError where writes are refused as in a failover: the next try asks for the master."""
        try:
            return super().read_response(*args, **options)
        except redis_errors.ResponseError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            self.disconnect()  # type: ignore[no-untyped-call] # redis-py leaves it without types
            raise redis_errors.ConnectionError(refusal) from error

    @property
    def raw_socket(self) -> Any:
        """For the watch."""
        return self._sock


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
        try:
            self.connection_pool.sentinel_manager.watch.admit(self)
        except redis_errors.ConnectionError:
            await self.disconnect()
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As MasterConnection's."""
        try:
            return await super().read_response(*args, **options)
        except redis_errors.ResponseError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            await self.disconnect()
            raise redis_errors.ConnectionError(refusal) from error

    @property
    def raw_socket(self) -> Any:
        """As MasterConnection's."""
        writer = self._writer
        return None if writer is None else writer.get_extra_info("socket")


def _refusal(error: redis_errors.ResponseError) -> str | None:
    said = str(error)
    return next((text for word, text in _REFUSALS.items() if word in said), None)


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
        self._search = _search(sentinels)
        self.watch = self._search.watch

    def discover_master(self, _master_name: str) -> tuple[str, int]:
        """The master's host and port. Raises MasterNotFound."""
        failures = _Failures(self._search.sentinels)
        for place in self._search.places():
            try:
                with Redis(**self._search.options(place), retry=Retry(NoBackoff(), 0)) as sentinel:
                    masters, address = self._search.question(sentinel).execute()
            except (redis_errors.RedisError, OSError) as error:
                failures.add(place, error)
                continue
            if (master := self._search.judge(masters, address, place, failures)) is not None:
                return master
        raise failures.verdict()


class _AsyncFinder(_Finder):
    """The same on an event loop."""

    async def discover_master(self, _master_name: str) -> tuple[str, int]:  # type: ignore[override] # redis-py's own too
        """The master's host and port. Raises MasterNotFound."""
        failures = _Failures(self._search.sentinels)
        for place in self._search.places():
            try:
                async with AsyncRedis(**self._search.options(place), retry=AsyncRetry(NoBackoff(), 0)) as sentinel:
                    masters, address = await self._search.question(sentinel).execute()
            except (redis_errors.RedisError, OSError) as error:
                failures.add(place, error)
                continue
            if (master := self._search.judge(masters, address, place, failures)) is not None:
                return master
        raise failures.verdict()


class _Search:
    """Whom to ask, and what an answer means; one for all pools of a process. Who knew last is asked first."""

    def __init__(self, sentinels: Sentinels) -> None:
        self.sentinels = sentinels
        self.watch = MasterWatch(_Listener(self))
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
            "decode_responses": True,
        }

    def question(self, sentinel: Any) -> Any:
        """A pipeline with what is asked of a sentinel.

        Both commands are needed. A replica is the master from its promotion on, and its address says so; the table of
        masters does when the other replicas follow it, which may be minutes later.
        """
        pipe = sentinel.pipeline(transaction=False)
        pipe.sentinel_masters()
        pipe.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.sentinels.master_name)
        return pipe

    def judge(
        self, masters: Masters, address: tuple[str, int] | None, place: tuple[str, int], failures: _Failures
    ) -> tuple[str, int] | None:
        state = masters.get(self.sentinels.master_name)
        if state is None or address is None:
            failures.known_names |= masters.keys()
        elif address != (state["ip"], int(state["port"])) or _is_well(state):
            if self.watch.learn(Master(*address, epoch=int(state["config-epoch"])), said_by=place):
                self._last = place
                return address
            failures.is_behind = True
        else:
            if "failover_in_progress" in state["flags"]:
                self.watch.expect_another(address, said_by=place)
            failures.is_down = True
        failures.answered = True
        return None


def _is_well(state: Mapping[str, Any]) -> bool:
    ill = state["is_sdown"] or state["is_odown"] or "failover_in_progress" in state["flags"]
    return bool(state["is_master"]) and not ill


_search = cache(_Search)


class _Listener:
    """What the sentinels say of themselves, over connections that are kept; and one of them is asked every second."""

    def __init__(self, search: _Search) -> None:
        self._search = search
        self._links: dict[tuple[str, int], _Link] = {}
        self._turn = 0

    def listen(self) -> None:
        """Wait for a failover's news for a second at most, then ask who told it, or else the next in turn."""
        hosts = self._search.sentinels.hosts
        links = [link for place in hosts if (link := self._link(place)).is_open]
        if not links:
            time.sleep(LOOK_S)
            return
        ready, _, _ = select.select(links, [], [], LOOK_S / 4 if self._search.watch.leader else LOOK_S)
        # With a failover under way its leader knows first; the others have it from the leader.
        leading = [link for link in links if link.place == self._search.watch.leader]
        self._turn += 1
        for link in ready or leading or [links[self._turn % len(links)]]:
            link.ask()

    def _link(self, place: tuple[str, int]) -> _Link:
        link = self._links.get(place)
        if link is None:
            link = self._links[place] = _Link(place, self._search)
        link.open()
        return link

    def close(self) -> None:
        """Close the connections to the sentinels."""
        links, self._links = self._links, {}
        for link in links.values():
            link.close()


class _Link:
    """Two connections to a sentinel, because one that listens can't ask."""

    def __init__(self, place: tuple[str, int], search: _Search) -> None:
        self.place = place
        self._search = search
        self._client = Redis(**search.options(place), retry=Retry(NoBackoff(), 0))
        self._heard: Any = None
        self._tried_at = -math.inf

    @property
    def is_open(self) -> bool:
        return self._heard is not None

    def open(self) -> None:
        """Listen, if it doesn't yet. One that does not answer is tried again after ten seconds."""
        if self.is_open or time.monotonic() - self._tried_at < AGAIN_S:
            return
        self._tried_at = time.monotonic()
        pool = self._client.connection_pool
        heard: Any = pool.connection_class(**pool.connection_kwargs)
        try:
            heard.connect()
            heard.send_command("PSUBSCRIBE", *_NEWS)
        except (redis_errors.RedisError, OSError):
            heard.disconnect()
        else:
            self._heard = heard

    def fileno(self) -> int:
        """For select."""
        return int(self._heard._sock.fileno())

    def ask(self) -> None:
        """Where the master is; what it has said meanwhile is taken off the line."""
        try:
            while self._heard.can_read(timeout=0):
                self._heard.read_response()
            masters, address = self._search.question(self._client).execute()
        except (redis_errors.RedisError, OSError):
            self.close()
        else:
            self._search.judge(masters, address, self.place, _Failures(self._search.sentinels))

    def close(self) -> None:
        """Close both."""
        heard, self._heard = self._heard, None
        if heard is not None:
            heard.disconnect()
        self._client.close()


class _Failures:
    """Why a search found nothing."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self._refused = ""
        self._silent: list[str] = []
        self.answered = False
        self.is_down = False
        self.is_behind = False
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
        if self.is_behind:
            return MasterNotFound(
                f"the sentinels that answer know only a former master {name}; if this lasts, check that they reach the "
                f"others, and what each says: redis-cli -p 26379 SENTINEL MASTER {name}"
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
