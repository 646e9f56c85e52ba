"""All limiters of a worker process: one for each key and model. What the pipeline holds."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tasks.cancellation import stop

from .channel import PauseChannel
from .cost import UNKNOWN, Cost
from .estimate import Estimator
from .headers import learned
from .limiter import Limiter, LimiterOptions, Moved
from .line import Line, Waiter
from .rate import plan
from .schedule import LimiterName, RedisSchedule
from .view import LimiterView, listed, look, mark_listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from pydantic import SecretStr
    from redis.asyncio import Redis

    from config.catalog import Limits, Model

    from .degraded import WhenAway
    from .headers import ToldLimit
    from .line import Priority
    from .permit import Permit
    from .rate import Plan

__all__ = ["LimiterRegistry", "fingerprint", "snapshot"]

LIST_EVERY_S = 3_600.0
LIST_AGAIN_S = 30.0
NO_KEY = "none"


def fingerprint(key: SecretStr | None) -> str:
    """A name for a key that does not tell it: 48 bits of its SHA-256."""
    return NO_KEY if key is None else sha256(key.get_secret_value().encode()).hexdigest()[:12]


async def snapshot(redis: Redis, *, key_prefix: str = "") -> list[LimiterView]:
    """Every limiter that any worker uses, as it stands. Changes nothing; needs no registry."""
    names = await listed(redis, key_prefix=key_prefix)
    return list(await asyncio.gather(*(look(redis, *name, key_prefix=key_prefix) for name in names)))


class LimiterRegistry:
    """Admits requests. Open it on the loop that uses it, `async with LimiterRegistry(...)`; it leaves `redis` open.

    A limiter is known by provider, upstream model and key. Limits that the catalogue does not state are learned from
    the headers of answers to any process; a model without any is admitted at once, unless a 429 has paused it.
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
    ) -> None:
        """`now` gives epoch seconds by the clock of the jobs' deadlines. `redis` must return bytes.

        `organisations`: by provider, limits that all its keys together have for each of its models that states none.
        """
        process = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._redis = redis
        self._now = now
        self._key_prefix = key_prefix
        self._options = LimiterOptions(process, when_away, degraded_for_s)
        self._weights = dict(tenant_weights or {})
        self._organisations = dict(organisations or {})
        self._limiters: dict[LimiterName, Limiter] = {}
        self._by_text: dict[str, Limiter] = {}
        self._pools: dict[tuple[str, str, tuple[SecretStr | None, ...]], list[tuple[Any, Limiter]]] = {}
        self._by_model: dict[tuple[str, str], list[Limiter]] = {}
        self._estimators: dict[tuple[str, str], Estimator] = {}
        self._channel = PauseChannel(redis, self, key_prefix=key_prefix)
        self._has_new = asyncio.Event()
        self._listing: asyncio.Task[None] | None = None
        self._turn = 0

    async def __aenter__(self) -> Self:
        self._channel.open()
        self._listing = asyncio.create_task(self._keep_listed())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell Redis what ended and what is unused. Who still waits is cancelled."""
        await self._channel.close()
        if self._listing is not None:
            await stop(self._listing)
        await asyncio.gather(*(limiter.close() for limiter in self._limiters.values()))

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
        if not any(limiter.plan.is_free for _, limiter in pool):
            return None
        key, limiter = self._soonest(pool, priority, tenant or "")
        permit = limiter.admit_free(UNKNOWN) if limiter.plan.is_free else None
        if permit is not None:
            self._turn += 1
            permit.key = key
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
    ) -> Permit:
        """Wait until one of `keys` may send this request; the permit names the key.

        Raises `TooLargeForLimit` at once, `TooLate` when `deadline_at` (epoch seconds) comes first, and `MustPark` when
        the slot is more than `park_after_s` seconds away (None: wait for ever). Safe to cancel.
        """
        pool = self._pool(model, keys)
        for _, limiter in pool:
            limiter.plan.check(cost)
        while True:
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
            )
            try:
                permit = await limiter.admit(waiter)
            except Moved:
                continue
            permit.key = key
            return permit

    def estimate(
        self, model: Model, *, input_chars: int, max_tokens: int | None = None, answers: int = 1, embeds: bool = False
    ) -> Cost:
        """The reservation for a request: its input by its length, its output by what the model has answered so far."""
        estimator = self._estimator(model)
        if embeds:
            return estimator.embedding_cost(input_chars=input_chars)
        cost = estimator.cost(input_chars=input_chars, max_tokens=max_tokens, answers=answers)
        for terms in self._plans(model):
            cost = terms.within(cost)
        return cost

    async def snapshot(self) -> list[LimiterView]:
        """See the function `snapshot`."""
        return await snapshot(self._redis, key_prefix=self._key_prefix)

    # ---- the channel's ears

    def pause_heard(self, limiter: str, epoch: int, left_s: float) -> None:
        if (found := self._by_text.get(limiter)) is not None:
            found.overhear_pause(epoch, left_s)

    def hears_again(self) -> None:
        for limiter in self._limiters.values():
            limiter.listen_again()

    # ----

    def _soonest(self, pool: list[tuple[Any, Limiter]], priority: Priority, tenant: str) -> tuple[Any, Limiter]:
        """The key that is free first; among equals, that with the fewest of the tenant in its line; then each in turn.

        Tenants take turns key by key, so each has to wait in all the lines.
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
            offered = keys or (None,)
            pool = self._pools[identity] = [(key, self._limiter(model, key, keys=len(offered))) for key in offered]
        return pool

    def _limiter(self, model: Model, key: SecretStr | None, *, keys: int) -> Limiter:
        name = LimiterName(model.provider, model.upstream, fingerprint(key))
        if (limiter := self._limiters.get(name)) is None:
            limiter = self._limiters[name] = self._by_text[str(name)] = self._open(name, model, keys=keys)
            self._by_model.setdefault((model.provider, model.upstream), []).append(limiter)
            self._has_new.set()
        return limiter

    def _open(self, name: LimiterName, model: Model, *, keys: int) -> Limiter:
        def learn(told: Mapping[ToldLimit, int]) -> None:
            limiter.replan(*self._terms(name, model, told, keys=keys))

        first_plan, schedule = self._terms(name, model, {}, keys=keys)
        limiter = Limiter(
            first_plan,
            schedule,
            options=self._options,
            estimator=self._estimator(model),
            now=self._now,
            line=Line(self._weights),
            hears_pauses=lambda: self._channel.hears,
            on_told=learn,
        )
        return limiter

    def _terms(
        self, name: LimiterName, model: Model, told: Mapping[ToldLimit, int], *, keys: int
    ) -> tuple[Plan, RedisSchedule]:
        """The plan for what the catalogue states and answers have told, and the schedule that sells by it."""
        limits, above = learned(model.limits, told), self._organisation(model)
        terms = plan(limits, stated=model.limits, organisation=above, keys=keys)
        return terms, RedisSchedule(self._redis, name, terms, told=told, key_prefix=self._key_prefix)

    def _organisation(self, model: Model) -> Limits | None:
        return model.organisation_limits or self._organisations.get(model.provider)

    def _estimator(self, model: Model) -> Estimator:
        name = (model.provider, model.upstream)
        if (estimator := self._estimators.get(name)) is None:
            estimator = self._estimators[name] = Estimator()
        return estimator

    def _plans(self, model: Model) -> list[Plan]:
        """Of each key that was used; before any was, by the catalogue."""
        limiters = self._by_model.get((model.provider, model.upstream), ())
        return [limiter.plan for limiter in limiters] or [plan(model.limits, organisation=self._organisation(model))]

    async def _keep_listed(self) -> None:
        """Say which limiters there are, when there are new ones and every hour; for `snapshot`, nothing else."""
        while True:
            self._has_new.clear()
            again_s = LIST_EVERY_S
            try:
                seconds, _ = await self._redis.time()
                await mark_listed(self._redis, list(self._limiters), now=seconds, key_prefix=self._key_prefix)
            except (RedisError, OSError, TimeoutError):
                again_s = LIST_AGAIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await self._has_new.wait()
