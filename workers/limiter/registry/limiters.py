"""The limiters that there are: opened when they are first asked for, closed when nobody has used them for long."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from tasks.redis.cancellation import stop

from ...redis.link import Link
from ..estimate import Estimators
from ..heard.headers import learned
from ..heard.long_waits import tell_long_wait
from ..limiter import Limiter, LimiterOptions
from ..rate import plan
from ..shared.schedule import LimiterName, RedisSchedule
from ..waiting.wait_queue import WaitQueue
from .listing import Listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import SecretStr
    from redis.asyncio import Redis

    from config.catalog import Model

    from ..estimate import Estimator
    from ..heard.headers import LearnedLimit
    from ..leasing.degraded import WhenAway
    from ..rate import Plan
    from .naming import Naming

__all__ = ["Limiters", "Offers", "fingerprint"]

_ROUNDING_S = 1.0
NO_KEY = "none"

IDLE_S = 600.0
"""What nobody has used for so long is closed; Redis keeps its schedule."""

MOST_IDLE = 256
"""More than so many limiters are there only while they are used."""

Offers: TypeAlias = "list[tuple[SecretStr | None, Limiter]]"
"""The keys that a request may go with, each with its limiter."""


def fingerprint(key: SecretStr | None) -> str:
    """A name for a key that does not tell it: 48 bits of its SHA-256."""
    return NO_KEY if key is None else sha256(key.get_secret_value().encode()).hexdigest()[:12]


class Limiters:
    """One for each name: provider, model (as `naming` has it) and key. Belongs to one event loop."""

    def __init__(
        self,
        redis: Redis,
        naming: Naming,
        *,
        now: Callable[[], float],
        key_prefix: str,
        when_away: WhenAway,
        degraded_for_s: float,
        longest_alone_s: float,
        tenant_weights: Mapping[str, float],
        hears_pauses: Callable[[], bool],
    ) -> None:
        """`hears_pauses`: whether this process hears now what others say of pauses. The rest: `LimiterRegistry`'s."""
        process = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._redis = redis
        self._naming = naming
        self._now = now
        self._key_prefix = key_prefix
        self._options = LimiterOptions(process, when_away, degraded_for_s, longest_alone_s)
        self._weights = dict(tenant_weights)
        self._hears_pauses = hears_pauses
        self._link = Link(redis)
        self._opened = count()
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._by_name: dict[LimiterName, Limiter] = {}
        self._by_text: dict[str, Limiter] = {}
        self._by_model: dict[tuple[str, str], list[Limiter]] = {}
        self._offers: dict[tuple[str, str, tuple[SecretStr | None, ...]], Offers] = {}
        self._estimators = Estimators()
        self._listing = Listing(redis, self._by_name.keys(), key_prefix=key_prefix)

    def open(self) -> None:
        """On the loop that uses it."""
        self._listing.open()
        self._sweeping = asyncio.create_task(self._keep_closing_idle())

    async def close(self) -> None:
        """Tell Redis what ended and what is unused. Who still waits is cancelled."""
        await self._listing.close()
        if self._sweeping is not None:
            await stop(self._sweeping)
        await asyncio.gather(*self._closing, *(limiter.close() for limiter in self._by_name.values()))
        await self._link.close()

    def __iter__(self) -> Iterator[Limiter]:
        return iter(self._by_name.values())

    def named(self, text: str) -> Limiter | None:
        """The limiter whose name is written so, if this process has it."""
        return self._by_text.get(text)

    def offers(self, model: Model, keys: Sequence[SecretStr | None]) -> Offers:
        """The limiters of a model's keys; of a model without keys the one that it has."""
        identity = (model.provider, model.upstream, tuple(keys))
        if (offers := self._offers.get(identity)) is None:
            identity = (*self._naming.known_as(model), tuple(keys))
            if (offers := self._offers.get(identity)) is None:
                offered = keys or (None,)
                offers = self._offers[identity] = [(key, self.of(model, key, keys=len(offered))) for key in offered]
        return offers

    def of(self, model: Model, key: SecretStr | None, *, keys: int) -> Limiter:
        """The limiter of a model and one of its `keys` keys, opened if there is none."""
        known_as = self._naming.known_as(model)
        name = LimiterName(*known_as, fingerprint(key))
        if (limiter := self._by_name.get(name)) is None:
            self._close_idle(for_s=0.0, most=MOST_IDLE - 1)
            limiter = self._by_name[name] = self._by_text[str(name)] = self._open(name, model, keys=keys)
            self._by_model.setdefault(known_as, []).append(limiter)
            self._listing.note_new()
        return limiter

    def plans(self, model: Model) -> list[Plan]:
        """Of each key that was used; before any was, by the catalogue."""
        limiters = self._by_model.get(self._naming.known_as(model), ())
        return [limiter.plan for limiter in limiters] or [
            plan(model.limits, organisation=self._naming.organisation(model))
        ]

    def estimator(self, model: Model) -> Estimator:
        """What is known of the tokens that requests to this model take."""
        return self._estimators.of(self._naming.known_as(model))

    # -- closing

    async def _keep_closing_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S / 10)
            self._close_idle(for_s=IDLE_S, most=0)

    def _close_idle(self, *, for_s: float, most: int) -> None:
        """Those that nobody has used for so long, beyond the `most` that were used last."""
        if len(self._by_name) <= most:
            return
        latest = asyncio.get_running_loop().time() - for_s
        idle = [(since, name) for name, each in self._by_name.items() if (since := each.idle_since) <= latest]
        idle.sort(key=lambda found: found[0])
        for _, name in idle[: len(self._by_name) - most]:
            self._forget(name)

    def _forget(self, name: LimiterName) -> None:
        limiter = self._by_name.pop(name)
        del self._by_text[str(name)]
        known_as = (name.provider, name.model)
        self._by_model[known_as].remove(limiter)
        if not self._by_model[known_as]:
            del self._by_model[known_as]
        for identity in [each for each, offers in self._offers.items() if any(limiter is one for _, one in offers)]:
            del self._offers[identity]
        task = asyncio.create_task(limiter.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -- opening

    def _open(self, name: LimiterName, model: Model, *, keys: int) -> Limiter:
        def learn(limits: Mapping[LearnedLimit, int]) -> None:
            limiter.replan(*self._terms(name, model, limits, keys=keys))

        first_plan, schedule = self._terms(name, model, {}, keys=keys)
        limiter = Limiter(
            first_plan,
            schedule,
            # What Redis remembers of a limiter that was closed must not answer for the next of its name.
            options=replace(self._options, process=f"{self._options.process}-{next(self._opened)}"),
            estimator=self.estimator(model),
            now=self._now,
            queue=WaitQueue(self._weights),
            hears_pauses=self._hears_pauses,
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
