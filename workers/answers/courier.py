"""What is said to Redis of prompts: look-ups and ends of calls travel together, some fifty batches a second at most.

Nothing here waits for a Redis that is away: who asks is told that nothing is known, and makes the call. What has become
of calls is said again later, so that nobody waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import uuid4

import orjson
from redis.exceptions import ResponseError

from tasks.redis.cancellation import stop
from tasks.wire import redis_keys
from tasks.wire.message import CELERY_PRIORITY

from ..redis.link import AWAY, portions
from . import scripts
from .known import COMPRESS_FROM_BYTES, NOTHING, compressed, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..prompt.job import JobKind, PromptJob
    from ..redis.link import Link
    from .known import Known

__all__ = ["LEAD", "TIMEOUT_S", "Courier", "Landing", "Look"]

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

PARKED_MS: Final = 30_000
"""For so long after its time a parked job keeps its lead."""

SOON_MS: Final = 30_000
FURTHEST_MS: Final = 240_000
"""Who waits for a call looks again after so long at first, later after as long as the call has taken, up to this."""

How = Literal["store", "share", "release", "park", "wake"]

LEAD: Final = 1
"""The reply to one who is to call."""


class Look(NamedTuple):
    """A question in the words of look.lua; then the job's kind, and who waits for what comes of it."""

    digest: str
    job: str
    number: int
    rank: int
    ttl_ms: int
    submitted_s: float
    followed: str
    has_next: bool
    is_redelivered: bool
    kind: JobKind
    waiting: asyncio.Future[Any]


ASKED: Final = Look._fields[:-2]
TOLD: Final = ("digest", "number", "how", "bytes", "ttl_ms", "until_ms", "rank")
"""What the scripts are told of each prompt: a column each, because a map for each takes twice as long."""


class Landing:
    """What has become of a call, in the words of land.lua. `known` is what is stored, or else `data`."""

    __slots__ = ("data", "digest", "how", "known", "number", "rank", "ttl_ms", "until_ms")

    def __init__(self, digest: str, number: int, how: How, *, rank: int = 0, ttl_ms: int = 0) -> None:
        """`number`: that of the question by which this process came to lead."""
        self.digest = digest
        self.number = number
        self.how = how
        self.rank = rank
        self.ttl_ms = ttl_ms
        self.known: Known | None = None
        self.data = b""
        self.until_ms = 0


class Courier:
    """One for each process. Belongs to one event loop."""

    def __init__(
        self,
        link: Link,
        *,
        key_prefix: str,
        room_bytes: int,
        keep: Callable[[list[tuple[str, bytes, int]]], None],
        hear: Callable[[Sequence[Look], Sequence[Any]], None],
        skip: Callable[[], None],
        to_redis: Callable[[float], float],
    ) -> None:
        """`room_bytes`: how many bytes all answers in Redis may take. `keep` gets the answers as they are stored, each
        with its digest and for how many ms. `hear` gets the replies of look.lua. `skip` is called for a look-up that is
        not made. `to_redis` adds to an instant of the worker's clock what Redis's is ahead by.
        """
        self._link = link
        self._keep = keep
        self._hear = hear
        self._skip = skip
        self._count = 0
        self._to_redis = to_redis
        self._prefix = key_prefix
        self._process = uuid4().hex[:16]
        self._indexes = [key_prefix + key for key in redis_keys.ANSWER_INDEXES]
        self._names = {
            "process": self._process,
            "room_bytes": room_bytes,
            "lists": {"steps": redis_keys.PRIORITY_STEPS, "separator": redis_keys.PRIORITY_SEPARATOR},
            "prefix": key_prefix,
            "delayed": key_prefix + redis_keys.DELAYED_PREFIX,
            "answers": key_prefix + redis_keys.ANSWER_PREFIX,
            "flights": key_prefix + redis_keys.FLIGHT_PREFIX,
        }
        self._looks: list[Look] = []
        self._landings: list[Landing] = []
        self._unsaid: list[Landing] = []
        self.leads: dict[int, Landing] = {}
        """The calls that equal prompts wait for, by number: under way here, or ended and not said yet."""
        self._landed_at_once = AT_ONCE
        self._sender: asyncio.Task[None] | None = None
        self._away_until = 0.0

    @property
    def has_news(self) -> bool:
        """Whether there is something to say with the next beat."""
        return bool(self.leads or self._unsaid)

    def look(
        self,
        digest: str,
        job: PromptJob,
        *,
        ttl_s: float,
        followed: str | None,
        has_next: bool = False,
        redelivered: bool = False,
    ) -> asyncio.Future[Any] | None:
        """Gives what `hear` makes of the reply; None: Redis is not asked now. Where its reply is lost, the caller may
        be the one who leads: it calls, and says what has become of it.

        An answer may be `ttl_s` old, and the job's own is kept as long. `followed` is the token of the call that it has
        waited for. `has_next`: it has another model to ask, and shares what leads there. `redelivered`: the worker that
        has run it is gone, so it leads again where it led.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            self._skip()
            return None
        waiting: asyncio.Future[Any] = loop.create_future()
        self._count = number = self._count + 1
        options = job.options
        rank, ttl_ms, submitted_at = CELERY_PRIORITY[options.priority], int(ttl_s * 1000) or 1, options.submitted_at
        submitted_s, followed = -1.0 if submitted_at is None else submitted_at, followed or ""
        ask = digest, job.id, number, rank, ttl_ms, submitted_s, followed, has_next, redelivered, job.kind, waiting
        # Without the Python function that a named tuple is made by: this is done for each miss.
        self._looks.append(tuple.__new__(Look, ask))
        if self._sender is None:
            self._start()
        return waiting

    def land(self, landing: Landing) -> None:
        """Say it with the next batch. Until it is said, those that wait are kept from calling again."""
        self._landings.append(landing)
        if self._sender is None:
            self._start()

    def parked_until_ms(self, until_s: float) -> int:
        """How long a job that is parked until then keeps its lead."""
        return int(self._to_redis(until_s) * 1000) + PARKED_MS

    async def renew(self) -> int | None:
        """Say which calls are under way, and again what could not be said. How often answers were cleared; None:
        unknown.
        """
        self._landings += self._unsaid
        self._unsaid.clear()
        if self._landings and self._sender is None:
            self._start()
        leads, cleared = list(self.leads.values()), None
        for some in portions(leads, AT_ONCE) if leads else [[]]:
            names = [self._indexes[-1], *(self._prefix + redis_keys.flight(lead.digest) for lead in some)]
            ask = {"process": self._process, "lease_ms": LEASE_MS, "numbers": [lead.number for lead in some]}
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
                calls = [self._tell(some) for some in portions(landings, self._landed_at_once)]
                calls += [self._ask(some) for some in portions(looks, AT_ONCE)]
                await asyncio.gather(*calls)
                await asyncio.sleep(LINGER_S)
        finally:
            self._sender = None

    async def _ask(self, looks: Sequence[Look]) -> None:
        asks = {
            "process": self._process,
            "answers": self._names["answers"],
            "flights": self._names["flights"],
            "lease_ms": LEASE_MS,
            "soon_ms": SOON_MS,
            "furthest_ms": FURTHEST_MS,
            "ahead_ms": int(self._to_redis(0.0) * 1000),
            "asks": dict(zip(ASKED, zip(*looks, strict=True), strict=False)),
        }
        replies: Sequence[Any]
        try:
            replies = await self._link.run(scripts.LOOK, self._indexes[:1], [orjson.dumps(asks)])
        except AWAY as error:
            self._note_away(error)
            replies = [LEAD] * len(looks)
        self._hear(looks, replies)

    async def _tell(self, landings: Sequence[Landing]) -> None:
        try:
            args = await self._written(landings)
            left = await self._link.run(scripts.LAND, self._indexes, args)
        except AWAY as error:
            self._note_away(error)
            # It may have been too much: answers may have megabytes.
            self._landed_at_once = max(1, len(landings) // 2)
            self._unsaid += landings
            lost, self._unsaid = self._unsaid[:-MOST_UNSAID], self._unsaid[-MOST_UNSAID:]
            # What Redis refuses, it may refuse for ever: those that wait do so until the lead's time is over.
            self._forget(landings if isinstance(error, ResponseError) else lost)
            return
        except BaseException:
            self._forget(landings)
            raise
        self._landed_at_once = AT_ONCE
        self._forget(landings)
        for landing, more in zip(landings, left, strict=True):
            if more:
                self.land(Landing(landing.digest, landing.number, "wake"))

    async def _written(self, landings: Sequence[Landing]) -> list[bytes]:
        """The arguments of land.lua: one for all that is stored, as packing arguments is most of what a batch costs."""
        calls, kept = [], []
        for landing in landings:
            if landing.known is not None:
                landing.data = encode(landing.known)
                if len(landing.data) >= COMPRESS_FROM_BYTES:
                    landing.data = await compressed(landing.data)
                landing.known = None
                if landing.data == NOTHING:
                    landing.how = "share"
                elif landing.how == "store":
                    kept.append((landing.digest, landing.data, landing.ttl_ms))
            calls.append(
                (
                    landing.digest,
                    landing.number,
                    landing.how,
                    len(landing.data),
                    landing.ttl_ms,
                    landing.until_ms,
                    landing.rank,
                )
            )
        if kept:
            self._keep(kept)
        told = dict(zip(TOLD, zip(*calls, strict=True), strict=True))
        return [orjson.dumps(self._names | {"calls": told}), b"".join([landing.data for landing in landings])]

    def _forget(self, landings: Sequence[Landing]) -> None:
        """They are no longer renewed."""
        for landing in landings:
            self.leads.pop(landing.number, None)

    def _note_away(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._away_until + AWAY_S:
            logger.warning("Redis can't be asked for answers (%s); jobs go on without the cache", type(error).__name__)
        self._away_until = now + AWAY_S
