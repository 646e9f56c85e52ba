"""What the pipeline holds: look for an answer, lead the call for equal prompts, and say what has become of it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from tasks.redis.cancellation import stop
from tasks.wire import redis_keys

from ..prompt.parked import Follows
from ..redis.link import Link
from .courier import LEAD, TIMEOUT_S, Courier, Landing
from .known import Known, decode, encode_failure, is_good, is_shared, leads_on
from .memory import Memory
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from redis.asyncio import Redis

    from ..prompt.failure import Failure
    from ..prompt.job import JobKind
    from ..prompt.parked import Parked
    from ..providers import Answer
    from .courier import Look

__all__ = ["Answers", "Flight", "Follow"]

BEAT_S: Final = 5.0
"""How often a process says which calls it has under way, and hears whether answers were cleared."""

HIT, FOLLOW = 0, 2


class Follow(NamedTuple):
    """The call of an equal prompt is under way."""

    follows: Follows


Asked: TypeAlias = "asyncio.Future[Known | Flight | Follow | None]"


class Answers:
    """One for each process. Use it with `async with`; belongs to one event loop."""

    def __init__(
        self,
        redis: Redis,
        *,
        memory_bytes: int,
        redis_bytes: int,
        to_redis: Callable[[float], float],
        redis_s: Callable[[], float],
        key_prefix: str = "",
    ) -> None:
        """`to_redis` leads from the worker's clock to Redis's, of which `redis_s` gives the time (epoch seconds)."""
        self.tally = Tally()
        self._memory = Memory(memory_bytes, redis_s=redis_s)
        self.at_hand = self._memory.get
        """The answer to a digest as it is stored, if it is in memory. On any thread; counted when it is opened."""
        self._courier = Courier(
            Link(redis, timeout_s=TIMEOUT_S),
            key_prefix=key_prefix,
            room_bytes=redis_bytes,
            keep=self._memory.keep,
            hear=self._hear,
            skip=partial(self.tally.note, "skipped"),
            to_redis=to_redis,
        )
        self.look = self._courier.look
        """Gives, when awaited, an answer; a flight, to be led; whom to follow; or None: make the call, and say nothing.
        Raises the `Failure` of an equal prompt that was under way together with this one, if they share it. Who stops
        waiting says so with `give_up`.
        """
        self._redis_s = redis_s
        self._cleared: int | None = None
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._keep_beating())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            await stop(self._beating)
        await self._courier.close()
        self.tally.tell()

    def opened(self, data: bytes) -> Known | None:
        """An answer that was at hand."""
        known = decode(data)
        if known is not None:
            self.tally.note("memory", saved_usd=known.cost_usd)
        return known

    def give_up(self, asked: Asked) -> None:
        """Nobody waits for it any more. If it was to lead, another may."""
        if not asked.cancel() and not asked.cancelled() and asked.exception() is None:
            found = asked.result()
            if isinstance(found, Flight):
                found.release()

    def _hear(self, looks: Sequence[Look], replies: Sequence[Any]) -> None:
        """For the courier. One call for a batch: what is done here for each job is done for each miss."""
        led, leads = 0, self._courier.leads
        for look, reply in zip(looks, replies, strict=True):
            digest, _, number, rank, ttl_ms, *_, kind, waiting = look
            if reply != LEAD:
                if not waiting.done():
                    self._hear_other(digest, reply, waiting)
                continue
            flight = leads[number] = Flight(digest, number, "release", rank=rank, ttl_ms=ttl_ms)
            flight.courier, flight.kind = self._courier, kind
            if waiting.done():  # it was stopped meanwhile
                flight.release()
            else:
                led += 1
                waiting.set_result(flight)
        if led:
            self.tally.note("missed", led)

    def _hear_other(self, digest: str, reply: list[Any], waiting: Asked) -> None:
        if reply[0] == FOLLOW:
            self.tally.note("followed")
            waiting.set_result(Follow(Follows(redis_keys.flight(digest), reply[1].decode())))
            return
        try:
            known = self._known(digest, reply)
        except Exception as problem:  # noqa: BLE001 - the job that has asked for it meets it
            waiting.set_exception(problem)
        else:
            waiting.set_result(known)

    def _known(self, digest: str, reply: list[Any]) -> Known | None:
        data: bytes = reply[1]
        if reply[0] != HIT:
            known = decode(data)
            self.tally.note("missed" if known is None else "shared", saved_usd=known and known.cost_usd)
            return known
        stored_ms, data = float(data[:13]), data[13:]
        self._memory.put(digest, data, stored_ms=stored_ms, ends_ms=self._redis_s() * 1000 + reply[2])
        known = decode(data)
        self.tally.note("redis", saved_usd=known and known.cost_usd)
        return known

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self.tally.tell()
            if self._memory.bytes or self._courier.has_news:
                await self._beat()

    async def _beat(self) -> None:
        cleared = await self._courier.renew()
        if cleared is not None and cleared != self._cleared:
            self._memory.clear()
            self._cleared = cleared


class Flight(Landing):
    """The lead of a call for equal prompts. Say once what has become of it."""

    # No `__init__` above that of `Landing`: one is made for each miss.
    __slots__ = ("courier", "kind")

    courier: Courier
    kind: JobKind

    def answered(self, answer: Answer, *, answered_by: str, cost_usd: float | None) -> None:
        """There is an answer: a whole one is stored, any other is for those that were under way."""
        self.known = tuple.__new__(Known, (answer, answered_by, cost_usd))
        self.how = "store" if is_good(self.kind, answer.response) else "share"
        self.courier.land(self)

    def failed(self, failure: Failure, *, has_next: bool) -> None:
        """There is none: those that were under way share the failure, or one of them tries again. `has_next`: the job
        has another model to ask, and those of the others that have one follow it there."""
        if is_shared(failure) or (has_next and leads_on(failure)):
            self.how, self.data = "share", encode_failure(failure)
        self.courier.land(self)

    def parked(self, parked: Parked) -> None:
        """The job comes back later, and leads on where it keeps its lead; else another may lead."""
        if parked.keeps_lead:
            self.how, self.until_ms = "park", self.courier.parked_until_ms(parked.until_s)
        self.courier.land(self)

    def release(self) -> None:
        """Another may lead."""
        self.courier.land(self)
