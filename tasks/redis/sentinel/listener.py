"""What the sentinels say of themselves, over connections that are kept."""

from __future__ import annotations

import math
import select
import time
from typing import TYPE_CHECKING, Any, Final

from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from .sentinels import Failures

if TYPE_CHECKING:
    from .search import Search

__all__ = ["SentinelListener"]

LOOK_S: Final = 1.0
"""How often a sentinel is asked, each in its turn: one that is cut off from the others hears of nothing."""

AGAIN_S: Final = 10.0

_NEWS: Final = ("+try-failover", "+failover-state-*", "+promoted-slave", "+switch-master", "-failover-abort-*")
"""What a sentinel says of a failover, from some 100 ms before the replica is promoted."""


class SentinelListener:
    """What the sentinels say of themselves, over connections that are kept; and one of them is asked every second."""

    def __init__(self, search: Search) -> None:
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

    def __init__(self, place: tuple[str, int], search: Search) -> None:
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
            self._search.judge(masters, address, self.place, Failures(self._search.sentinels))

    def close(self) -> None:
        """Close both."""
        heard, self._heard = self._heard, None
        if heard is not None:
            heard.disconnect()
        self._client.close()
