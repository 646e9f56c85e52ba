"""All limiters of a worker process: one for each key and model. What the pipeline holds."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any

from tasks.redis.cancellation import stop
from tasks.wire import redis_keys

from ..providers.size import NO_MEDIA, Media
from ..redis.channel import Channel
from ..redis.link import Link
from .cost import UNKNOWN, CallSize, Cost, Forecast
from .errors import Moved
from .estimate import Estimator, Estimators
from .heard.headers import learned
from .heard.long_waits import tell_long_wait
from .limiter import Limiter, LimiterOptions
from .listing import Listing
from .naming import Naming
from .rate import plan
from .shared.schedule import LimiterName, RedisSchedule
from .waiting.wait_queue import Waiter, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from pydantic import SecretStr
    from redis.asyncio import Redis

    from config.catalog import Limits, Model
    from tasks.wire.vocabulary import Priority

    from .heard.headers import LearnedLimit
    from .leasing.degraded import WhenAway
    from .permit import Permit
    from .rate import Plan

__all__ = ["LimiterRegistry", "fingerprint"]

_ROUNDING_S = 1.0
NO_KEY = "none"

IDLE_S = 600.0
"""What nobody has used for so long is closed; Redis keeps its schedule."""

MOST_IDLE = 256
"""More than so many limiters are there only while they are used."""


def fingerprint(key: SecretStr | None) -> str:
    """A name for a key that does not tell it: 48 bits of its SHA-256."""
    return NO_KEY if key is None else sha256(key.get_secret_value().encode()).hexdigest()[:12]


class LimiterRegistry:
    """Admits requests. Open it on the loop that uses it, `async with LimiterRegistry(...)`; it leaves `redis` open.

    A limiter is known by provider, upstream model and key. Limits that the catalogue does not state are learned from
    the headers of answers to any process; a model without any is admitted at once, unless a 429 has paused it.

    Models that are not `named`, which jobs may name as they like, share one limiter of each provider and key for as
    long as nothing is known of their limits; with the first header or 429 a model gets its own.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        now: Callable[[], float],
        key_prefix: str = "",
        when_away: WhenAway = "degraded",
        degraded_for_s: float = 60.0,
        tenant_weights: Mapping[str, float] | None = None,
        organisations: Mapping[str, Limits] | None = None,
        named: Collection[str] | None = None,
        longest_alone_s: float = 60.0,
        channel: Channel | None = None,
    ) -> None:
        """`now` gives epoch seconds by the clock of the jobs' deadlines. `redis` must return bytes.

        `organisations`: by provider, limits that all its keys together have for each of its models that states none.
        `named`: the names of the catalogue's models; None: all are named. `longest_alone_s`: see `LimiterOptions`.
        `channel`: one that others listen to as well, which the caller opens later; None: its own.
        """
        process = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._redis = redis
        self._now = now
        self._key_prefix = key_prefix
        self._options = LimiterOptions(process, when_away, degraded_for_s, longest_alone_s)
        self._weights = dict(tenant_weights or {})
        self._naming = Naming(named, organisations or {})
        self._link = Link(redis)
        self._opened = count()
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._limiters: dict[LimiterName, Limiter] = {}
        self._by_text: dict[str, Limiter] = {}
        self._pools: dict[tuple[str, str, tuple[SecretStr | None, ...]], list[tuple[Any, Limiter]]] = {}
        self._by_model: dict[tuple[str, str], list[Limiter]] = {}
        self._estimators = Estimators()
        self._channel = channel or Channel(redis, key_prefix=key_prefix)
        self._owns_channel = channel is None
        self._channel.listen(redis_keys.LIMITER_PAUSES, self._hear_pause, hears_again=self._hear_again)
        self._listing = Listing(redis, self._limiters.keys(), key_prefix=key_prefix)
        self._turn = 0

    async def __aenter__(self) -> Self:
        if self._owns_channel:
            self._channel.open()
        self._listing.open()
        self._sweeping = asyncio.create_task(self._keep_closing_idle())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell Redis what ended and what is unused. Who still waits is cancelled."""
        if self._owns_channel:
            await self._channel.close()
        await self._listing.close()
        if self._sweeping is not None:
            await stop(self._sweeping)
        await asyncio.gather(*self._closing, *(limiter.close() for limiter in self._limiters.values()))
        await self._link.close()

    def admit_free(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        priority: Priority = "normal",
        tenant: str | None = None,
    ) -> Permit | None:
        """The permit at once, for a model of which no limit is known; else None, and `admit` is the way.

        What the request takes need not be estimated: nobody waits for it, and its usage counts when it is settled.
        """
        pool = self._pool(model, keys)
        if len(pool) > 1 and not any(limiter.plan.is_free for _, limiter in pool):
            return None  # `admit` ranks them
        key, limiter = self._soonest(pool, priority, tenant or "")
        permit = limiter.admit_free(UNKNOWN) if limiter.plan.is_free else None
        if permit is not None:
            self._turn += 1
            self._mark(permit, model, key, keys)
        return permit

    async def admit(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        cost: Cost,
        priority: Priority = "normal",
        tenant: str | None = None,
        deadline_at: float | None = None,
        park_after_s: float | None = None,
        grows: Callable[[Waiter], Cost] | None = None,
    ) -> Permit:
        """Wait until one of `keys` may send this request; the permit names the key.

        `grows` says what it costs by now, where more may join it while it waits.

        Raises `TooLargeForLimit` at once, `TooLate` when `deadline_at` (epoch seconds) comes first, and `Parked` when
        the slot is more than `park_after_s` seconds away (None: wait for ever). Safe to cancel.
        """
        for _, limiter in self._pool(model, keys):
            limiter.plan.check(cost)
        while True:
            pool = self._pool(model, keys)  # again: an idle limiter may have been closed in the meantime
            key, limiter = self._soonest(pool, priority, tenant or "")
            self._turn += 1
            waiter = Waiter(
                cost,
                asyncio.get_running_loop().create_future(),
                priority=priority,
                tenant=tenant or "",
                until_s=deadline_at,
                park_after_s=park_after_s,
                movable=len(pool) > 1,
                grows=grows,
            )
            try:
                permit = await limiter.admit(waiter)
            except Moved:
                continue
            self._mark(permit, model, key, keys)
            return permit

    def estimate(
        self,
        model: Model,
        *,
        input_chars: int,
        input_tokens: int = 0,
        media: Media = NO_MEDIA,
        max_tokens: int | None = None,
        answers: int = 1,
        writes: bool = True,
    ) -> Cost:
        """The reservation for a request: its input by its length and by what is no text in it, its output by what the
        model has answered so far."""
        estimator = self._estimator(model)
        if not writes:
            return estimator.embedding_cost(input_chars=input_chars, input_tokens=input_tokens, media=media)
        cost = estimator.cost(
            input_chars=input_chars, input_tokens=input_tokens, media=media, max_tokens=max_tokens, answers=answers
        )
        for terms in self._plans(model):
            cost = terms.within(cost)
        return cost

    def expected_wait_s(self, model: Model, keys: Sequence[SecretStr | None], priority: Priority = "normal") -> float:
        """About how long a request that came now would wait for the first of `keys` that is free, in seconds."""
        return min(limiter.expected_wait_s(priority) for _, limiter in self._pool(model, keys))

    def forecast(self, model: Model) -> Forecast:
        """What requests to this model take, as far as is known now."""
        return self._estimator(model).forecast()

    def call_size(self, model: Model) -> CallSize:
        """How large a call may be, as far as is known."""
        most = min(terms.most_tokens for terms in self._plans(model))
        return CallSize(most, self._estimator(model).chars_per_token)

    # ---- the channel of pauses

    def _hear_pause(self, said: str) -> None:
        name, epoch, left_us = said.rsplit(" ", 2)
        if (limiter := self._by_text.get(name)) is not None:
            limiter.overhear_pause(int(epoch), int(left_us) / 1e6)
        else:
            provider, _, rest = name.partition(":")
            self._naming.note_limits(provider, rest.rpartition(":")[0])

    def _hear_again(self) -> None:
        for limiter in self._limiters.values():
            limiter.listen_again()

    # ----

    def _soonest(self, pool: list[tuple[Any, Limiter]], priority: Priority, tenant: str) -> tuple[Any, Limiter]:
        """The key that is free first; among equals, that with the fewest of the tenant in its queue; then each in turn.

        Tenants take turns key by key, so each has to wait in all the queues.
        """
        if len(pool) == 1:
            return pool[0]
        turned = [pool[(self._turn + position) % len(pool)] for position in range(len(pool))]

        def rank(offer: tuple[Any, Limiter]) -> tuple[float, int, int]:
            limiter = offer[1]
            return limiter.expected_wait_s(priority), limiter.waiting_of(tenant, priority), limiter.in_flight

        return min(turned, key=rank)

    def _pool(self, model: Model, keys: Sequence[SecretStr | None]) -> list[tuple[Any, Limiter]]:
        identity = (model.provider, model.upstream, tuple(keys))
        if (pool := self._pools.get(identity)) is None:
            identity = (*self._naming.known_as(model), tuple(keys))
            if (pool := self._pools.get(identity)) is None:
                offered = keys or (None,)
                pool = self._pools[identity] = [(key, self._limiter(model, key, keys=len(offered))) for key in offered]
        return pool

    def _limiter(self, model: Model, key: SecretStr | None, *, keys: int) -> Limiter:
        known_as = self._naming.known_as(model)
        name = LimiterName(*known_as, fingerprint(key))
        if (limiter := self._limiters.get(name)) is None:
            self._close_idle(for_s=0.0, most=MOST_IDLE - 1)
            limiter = self._limiters[name] = self._by_text[str(name)] = self._open(name, model, keys=keys)
            self._by_model.setdefault(known_as, []).append(limiter)
            self._listing.note_new()
        return limiter

    def _mark(self, permit: Permit, model: Model, key: SecretStr | None, keys: Sequence[SecretStr | None]) -> None:
        permit.key = key
        if self._naming.is_shared(model):
            permit.owner = partial(self._own, model, key, keys=len(keys or (None,)))

    def _own(self, model: Model, key: SecretStr | None, *, keys: int) -> Limiter:
        """From now on the model's limiter is its own."""
        self._naming.note_limits(model.provider, model.upstream)
        return self._limiter(model, key, keys=keys)

    def _close_idle(self, *, for_s: float, most: int) -> None:
        """Those that nobody has used for so long, beyond the `most` that were used last."""
        if len(self._limiters) <= most:
            return
        latest = asyncio.get_running_loop().time() - for_s
        idle = [(since, name) for name, each in self._limiters.items() if (since := each.idle_since) <= latest]
        idle.sort(key=lambda found: found[0])
        for _, name in idle[: len(self._limiters) - most]:
            self._forget(name)

    def _forget(self, name: LimiterName) -> None:
        limiter = self._limiters.pop(name)
        del self._by_text[str(name)]
        known_as = (name.provider, name.model)
        self._by_model[known_as].remove(limiter)
        if not self._by_model[known_as]:
            del self._by_model[known_as]
        for identity in [each for each, pool in self._pools.items() if any(limiter is one for _, one in pool)]:
            del self._pools[identity]
        task = asyncio.create_task(limiter.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _keep_closing_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S / 10)
            self._close_idle(for_s=IDLE_S, most=0)

    def _open(self, name: LimiterName, model: Model, *, keys: int) -> Limiter:
        def learn(limits: Mapping[LearnedLimit, int]) -> None:
            limiter.replan(*self._terms(name, model, limits, keys=keys))

        first_plan, schedule = self._terms(name, model, {}, keys=keys)
        limiter = Limiter(
            first_plan,
            schedule,
            # What Redis remembers of a limiter that was closed must not answer for the next of its name.
            options=replace(self._options, process=f"{self._options.process}-{next(self._opened)}"),
            estimator=self._estimator(model),
            now=self._now,
            queue=WaitQueue(self._weights),
            hears_pauses=lambda: self._channel.hears,
            on_learned=learn,
            on_pause=partial(self._note_pause, name),
        )
        return limiter

    def _note_pause(self, name: LimiterName, left_s: float) -> None:
        """Of a pause that more than one answer has asked for: people may want to do something about it."""
        if left_s > self._options.longest_alone_s + _ROUNDING_S:
            tell_long_wait(name, left_s, now=self._now())

    def _terms(
        self, name: LimiterName, model: Model, found: Mapping[LearnedLimit, int], *, keys: int
    ) -> tuple[Plan, RedisSchedule]:
        """The plan for what the catalogue states and answers have taught, and the schedule that sells by it."""
        limits, above = learned(model.limits, found), self._naming.organisation(model)
        terms = plan(limits, stated=model.limits, organisation=above, keys=keys)
        schedule = RedisSchedule(self._redis, name, terms, learned=found, key_prefix=self._key_prefix, link=self._link)
        return terms, schedule

    def _estimator(self, model: Model) -> Estimator:
        return self._estimators.of(self._naming.known_as(model))

    def _plans(self, model: Model) -> list[Plan]:
        """Of each key that was used; before any was, by the catalogue."""
        limiters = self._by_model.get(self._naming.known_as(model), ())
        return [limiter.plan for limiter in limiters] or [
            plan(model.limits, organisation=self._naming.organisation(model))
        ]
