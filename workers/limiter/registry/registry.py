"""Which key a request goes with, and what it takes. What the pipeline holds of the limiter."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from tasks.wire import redis_keys

from ...providers.size import NO_MEDIA, Media
from ...redis.channel import Channel
from ..cost import UNKNOWN, CallSize, Cost, Forecast
from ..errors import Moved
from ..waiting.wait_queue import Waiter
from .limiters import Limiters
from .naming import Naming

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from pydantic import SecretStr
    from redis.asyncio import Redis

    from config.catalog import Limits, Model
    from tasks.wire.vocabulary import Priority

    from ..leasing.degraded import WhenAway
    from ..limiter import Limiter
    from ..permit import Permit
    from .limiters import Offers

__all__ = ["LimiterRegistry"]


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
        self._naming = Naming(named, organisations or {})
        self._channel = channel or Channel(redis, key_prefix=key_prefix)
        self._owns_channel = channel is None
        self._limiters = Limiters(
            redis,
            self._naming,
            now=now,
            key_prefix=key_prefix,
            when_away=when_away,
            degraded_for_s=degraded_for_s,
            longest_alone_s=longest_alone_s,
            tenant_weights=tenant_weights or {},
            hears_pauses=lambda: self._channel.hears,
        )
        self._channel.listen(redis_keys.LIMITER_PAUSES, self._hear_pause, hears_again=self._hear_again)
        self._turn = 0

    async def __aenter__(self) -> Self:
        if self._owns_channel:
            self._channel.open()
        self._limiters.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell Redis what ended and what is unused. Who still waits is cancelled."""
        if self._owns_channel:
            await self._channel.close()
        await self._limiters.close()

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
        pool = self._limiters.offers(model, keys)
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
        for _, limiter in self._limiters.offers(model, keys):
            limiter.plan.check(cost)
        while True:
            pool = self._limiters.offers(model, keys)  # again: an idle limiter may have been closed in the meantime
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
        estimator = self._limiters.estimator(model)
        if not writes:
            return estimator.embedding_cost(input_chars=input_chars, input_tokens=input_tokens, media=media)
        cost = estimator.cost(
            input_chars=input_chars, input_tokens=input_tokens, media=media, max_tokens=max_tokens, answers=answers
        )
        for terms in self._limiters.plans(model):
            cost = terms.within(cost)
        return cost

    def expected_wait_s(self, model: Model, keys: Sequence[SecretStr | None], priority: Priority = "normal") -> float:
        """About how long a request that came now would wait for the first of `keys` that is free, in seconds."""
        return min(limiter.expected_wait_s(priority) for _, limiter in self._limiters.offers(model, keys))

    def forecast(self, model: Model) -> Forecast:
        """What requests to this model take, as far as is known now."""
        return self._limiters.estimator(model).forecast()

    def call_size(self, model: Model) -> CallSize:
        """How large a call may be, as far as is known."""
        most = min(terms.most_tokens for terms in self._limiters.plans(model))
        return CallSize(most, self._limiters.estimator(model).chars_per_token)

    # ---- the channel of pauses

    def _hear_pause(self, said: str) -> None:
        name, epoch, left_us = said.rsplit(" ", 2)
        if (limiter := self._limiters.named(name)) is not None:
            limiter.overhear_pause(int(epoch), int(left_us) / 1e6)
        else:
            provider, _, rest = name.partition(":")
            self._naming.note_limits(provider, rest.rpartition(":")[0])

    def _hear_again(self) -> None:
        for limiter in self._limiters:
            limiter.listen_again()

    # ----

    def _soonest(self, pool: Offers, priority: Priority, tenant: str) -> tuple[SecretStr | None, Limiter]:
        """The key that is free first; among equals, that with the fewest of the tenant in its queue; then each in turn.

        Tenants take turns key by key, so each has to wait in all the queues.
        """
        if len(pool) == 1:
            return pool[0]
        turned = [pool[(self._turn + position) % len(pool)] for position in range(len(pool))]

        def rank(offer: tuple[SecretStr | None, Limiter]) -> tuple[float, int, int]:
            limiter = offer[1]
            return limiter.expected_wait_s(priority), limiter.waiting_of(tenant, priority), limiter.in_flight

        return min(turned, key=rank)

    def _mark(self, permit: Permit, model: Model, key: SecretStr | None, keys: Sequence[SecretStr | None]) -> None:
        permit.key = key
        if self._naming.is_shared(model):
            permit.owner = partial(self._own, model, key, keys=len(keys or (None,)))

    def _own(self, model: Model, key: SecretStr | None, *, keys: int) -> Limiter:
        """From now on the model's limiter is its own."""
        self._naming.note_limits(model.provider, model.upstream)
        return self._limiters.of(model, key, keys=keys)
