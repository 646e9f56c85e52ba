"""Whom to ask for the master, and what an answer means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from redis import Redis
from redis import exceptions as redis_errors
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..master_watch import Master, MasterWatch
from .listener import SentinelListener
from .sentinels import Failures, Sentinels

__all__ = ["AsyncFinder", "Finder", "Search"]

SENTINEL_TIMEOUT_S: Final = 1.0
"""A sentinel that has not answered by then is passed over for the next one."""

Masters = Mapping[str, Mapping[str, Any]]


class Finder:
    """What redis-py calls a sentinel manager: all that its pools ask of one is the master's address."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._search = _search(sentinels)
        self.watch = self._search.watch

    def discover_master(self, _master_name: str) -> tuple[str, int]:
        """The master's host and port. Raises MasterNotFound."""
        failures = Failures(self._search.sentinels)
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


class AsyncFinder(Finder):
    """The same on an event loop."""

    async def discover_master(self, _master_name: str) -> tuple[str, int]:  # type: ignore[override] # redis-py's own too
        """The master's host and port. Raises MasterNotFound."""
        failures = Failures(self._search.sentinels)
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


class Search:
    """Whom to ask, and what an answer means; one for all pools of a process. Who knew last is asked first."""

    def __init__(self, sentinels: Sentinels) -> None:
        self.sentinels = sentinels
        self.watch = MasterWatch(SentinelListener(self))
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
        self, masters: Masters, address: tuple[str, int] | None, place: tuple[str, int], failures: Failures
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


_search = cache(Search)
