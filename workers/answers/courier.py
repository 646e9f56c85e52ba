"""What is said to Redis of prompts: look-ups and ends of calls travel together, some fifty batches a second at most.

Nothing here waits for a Redis that is away: who asks is told that nothing is known, and makes the call. What has become
of calls is said again later, so that nobody waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import orjson

from tasks.redis.cancellation import stop
from tasks.wire import redis_keys

from ..redis.link import AWAY, portions
from . import scripts
from .known import NOTHING, encode, encode_large

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..redis.link import Link
    from .known import Known

__all__ = ["TIMEOUT_S", "Courier", "Landing"]

logger = logging.getLogger("promptmill.answers")

AT_ONCE: Final = 128
"""Prompts of one script call: some 2 ms of Redis's time."""

LINGER_S: Final = 0.02
"""After a batch the next one waits so long for company. One that comes alone is sent at once."""

TIMEOUT_S: Final = 3.0
"""A reply that takes longer costs more than a call would: but a loop or a Redis that is busy for a second is not away,
and each reply that is given up may be a second call of the same prompt."""

AWAY_S: Final = 5.0
"""After Redis did not answer, nobody asks it for so long."""

MOST_UNSAID: Final = 10_000

LEASE_MS: Final = 20_000
"""How long a lead lasts without its process."""

SOON_MS: Final = 30_000
FURTHEST_MS: Final = 240_000
"""Who waits for a call looks again after so long at first, later after as long as the call has taken, up to this."""

How = Literal["store", "share", "release", "park", "wake"]

LED = 1
"""The reply to one who is to call."""


Look: TypeAlias = "tuple[str, dict[str, Any], asyncio.Future[list[Any] | None]]"
"""A digest, the question in the words of look.lua, and the reply."""


class Landing:
    """What has become of a call, in the words of land.lua. `known` is what is stored, or else `data`."""

    __slots__ = ("data", "digest", "how", "known", "rank", "token", "ttl_ms", "until_ms")

    def __init__(self, digest: str, token: str, how: How, *, rank: int = 0, ttl_ms: int = 0) -> None:
        self.digest = digest
        self.token = token
        self.how = how
        self.rank = rank
        self.ttl_ms = ttl_ms
        self.known: Known | None = None
        self.data = b""
        self.until_ms = 0


class Courier:
    """One for each process. Belongs to one event loop."""

    def __init__(
        self, link: Link, *, key_prefix: str, room_bytes: int, keep: Callable[[str, bytes, int], None]
    ) -> None:
        """`room_bytes`: how many bytes all answers in Redis may take. `keep` gets each answer as it is stored, with its
        digest and for how many ms.
        """
        self._link = link
        self._keep = keep
        self._prefix = key_prefix
        self._indexes = [key_prefix + key for key in redis_keys.ANSWER_INDEXES]
        self._names = {
            "room_bytes": room_bytes,
            "lists": {"steps": redis_keys.PRIORITY_STEPS, "separator": redis_keys.PRIORITY_SEPARATOR},
            "prefix": key_prefix,
            "delayed": key_prefix + redis_keys.DELAYED_PREFIX,
            "answers": key_prefix + redis_keys.ANSWER_PREFIX,
            "flights": key_prefix + redis_keys.FLIGHT_PREFIX,
        }
        self._looks: list[Look] = []
        self._landings: list[Landing] = []
        self._unsaid: deque[Landing] = deque(maxlen=MOST_UNSAID)
        self._sender: asyncio.Task[None] | None = None
        self._away_until = 0.0

    @property
    def has_unsaid(self) -> bool:
        """Whether something could not be said yet."""
        return bool(self._unsaid)

    def look(self, digest: str, ask: dict[str, Any]) -> asyncio.Future[list[Any] | None] | None:
        """Gives the reply of look.lua; None: Redis is not asked now. Where its reply is lost, the caller may be the one
        who leads: it calls, and says what has become of it."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            return None
        reply: asyncio.Future[list[Any] | None] = loop.create_future()
        self._looks.append((digest, ask, reply))
        if self._sender is None:
            self._start()
        return reply

    def land(self, landing: Landing) -> None:
        """Say it with the next batch."""
        self._landings.append(landing)
        if self._sender is None:
            self._start()

    async def renew(self, flights: Sequence[tuple[str, str]]) -> int | None:
        """Say that these calls, with digest and token, are under way. How often answers were cleared; None: unknown."""
        self._landings += self._unsaid
        self._unsaid.clear()
        if self._landings and self._sender is None:
            self._start()
        cleared = None
        for some in portions(flights, AT_ONCE) if flights else [[]]:
            names = [self._indexes[-1], *(self._prefix + redis_keys.flight(digest) for digest, _ in some)]
            ask = {"lease_ms": LEASE_MS, "tokens": [token for _, token in some]}
            try:
                cleared = int(await self._link.run(scripts.RENEW, names, [orjson.dumps(ask)]))
            except AWAY as error:
                self._note_away(error)
                return None
        return cleared

    async def close(self) -> None:
        """Say what is to be said, once."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=TIMEOUT_S)
        if self._sender is not None:
            await stop(self._sender)
        await self._link.close()

    def _start(self) -> None:
        self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._looks or self._landings:
                looks, self._looks = self._looks, []
                landings, self._landings = self._landings, []
                # What has ended comes first: those that look in the same turn find it.
                calls = [self._tell(some) for some in portions(landings, AT_ONCE)]
                calls += [self._ask(some) for some in portions(looks, AT_ONCE)]
                await asyncio.gather(*calls)
                await asyncio.sleep(LINGER_S)
        finally:
            self._sender = None

    async def _ask(self, looks: Sequence[Look]) -> None:
        asks = {
            "answers": self._names["answers"],
            "flights": self._names["flights"],
            "lease_ms": LEASE_MS,
            "soon_ms": SOON_MS,
            "furthest_ms": FURTHEST_MS,
            "asks": [ask for _, ask, _ in looks],
        }
        replies: Sequence[Any]
        try:
            replies = await self._link.run(scripts.LOOK, self._indexes[:1], [orjson.dumps(asks)])
        except AWAY as error:
            self._note_away(error)
            replies = [[LED]] * len(looks)
        for (digest, ask, waiting), reply in zip(looks, replies, strict=True):
            if not waiting.done():
                waiting.set_result(reply)
            elif reply[0] == LED:  # it was stopped meanwhile
                self.land(Landing(digest, ask["token"], "release"))

    async def _tell(self, landings: Sequence[Landing]) -> None:
        calls, texts = [], []
        for landing in landings:
            if landing.known is not None:
                landing.data = encode(landing.known) or await encode_large(landing.known)
            calls.append(self._words(landing))
            texts.append(landing.data)
        ask = orjson.dumps(self._names | {"calls": calls})
        try:
            left = await self._link.run(scripts.LAND, self._indexes, [ask, *texts])
        except AWAY as error:
            self._note_away(error)
            self._unsaid += landings
            return
        for landing, more in zip(landings, left, strict=True):
            if more:
                self.land(Landing(landing.digest, landing.token, "wake"))

    def _words(self, landing: Landing) -> dict[str, Any]:
        how = landing.how
        if landing.known is not None and landing.data[0] == NOTHING[0]:
            how = "share"
        elif how == "store":
            self._keep(landing.digest, landing.data, landing.ttl_ms)
        return {
            "digest": landing.digest,
            "token": landing.token,
            "how": how,
            "ttl_ms": landing.ttl_ms,
            "until_ms": landing.until_ms,
            "rank": landing.rank,
        }

    def _note_away(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._away_until + AWAY_S:
            logger.warning("Redis can't be asked for answers (%s); jobs go on without the cache", type(error).__name__)
        self._away_until = now + AWAY_S
