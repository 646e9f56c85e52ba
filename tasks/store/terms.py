"""What a client has to know of the queue's Redis before it writes there, read again now and then."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from ..errors import UnknownModel
from ..redis.clock import steady_s
from ..redis.connection import RedisConnection, ScriptRunner, Unreplicated, answer
from ..wire import redis_keys
from ..wire.request import NewJob, check_model
from .place import Place

__all__ = ["Terms", "Writer"]

_TERMS_TTL_S: Final = 30.0

_MODELS_TTL_S: Final = 1.0
"""How old the list of models may be where it holds none, or lacks one: a worker may have come since."""


@dataclass(slots=True)
class Terms:
    """Redis's clock against our steady one, and the models offered (None: not known).

    `wants_replica`: Redis takes writes only while a replica follows it: what it says it has, a replica must have too.
    """

    clock_offset_s: float
    models: frozenset[str] | None
    wants_replica: bool
    read_at_s: float

    def now_s(self) -> float:
        """Redis's time, as it is known here."""
        return steady_s() + self.clock_offset_s


class Writer:
    """Runs scripts that write, on the terms of the queue's Redis. Belongs to an event loop."""

    def __init__(self, broker: RedisConnection, place: Place) -> None:
        self._broker = broker
        self._place = place
        self._terms: Terms | None = None
        self._reading = asyncio.Lock()

    async def write(self, script: ScriptRunner, script_keys: Sequence[str], args: Sequence[str | int] = ()) -> Any:
        """Run a script, and have what it writes at a replica too before anybody is told, where Redis asks for one.

        Waits for that a third of `timeout_s` at most, or a silent Redis would look alike: it may have to wait twice, if
        Redis does not know the script.
        """
        wait_s = self._place.timeout_s / 3 if (await self.terms()).wants_replica else 0.0
        try:
            return await script(script_keys, args, wait_ms=math.ceil(wait_s * 1000))
        except Unreplicated:
            self.forget_terms()  # somebody may have changed the setting
            raise

    async def terms(self) -> Terms:
        """Half a minute old at most, and a second where no models are known."""
        terms = self._terms
        if terms is not None:
            ttl_s = _MODELS_TTL_S if terms.models is None else _TERMS_TTL_S
            if steady_s() < terms.read_at_s + ttl_s:
                return terms
        async with self._reading:
            if self._terms is terms:
                self._terms = await self._read()
        assert self._terms is not None
        return self._terms

    async def check_models(self, jobs: Sequence[NewJob]) -> None:
        """Raises `UnknownModel` for a job whose model no worker offers, by a list that is a second old at most."""
        terms = await self.terms()
        try:
            _check_models(jobs, terms)
        except UnknownModel:
            if steady_s() < terms.read_at_s + _MODELS_TTL_S:
                raise
            if self._terms is terms:
                self.forget_terms()
            _check_models(jobs, await self.terms())

    def forget_terms(self) -> None:
        """Have them read again before they are next used."""
        self._terms = None

    async def _read(self) -> Terms:
        before_s = steady_s()
        async with self._broker.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(self._place.key(redis_keys.MODELS), 0, -1, withscores=True)
            (seconds, microseconds), offered = await pipe.execute()
        read_s = (before_s + steady_s()) / 2
        redis_s = seconds + microseconds / 1e6
        return Terms(
            clock_offset_s=redis_s - read_s,
            models=_fresh_models(offered, redis_s),
            wants_replica=await self._wants_replica(),
            read_at_s=steady_s(),
        )

    async def _wants_replica(self) -> bool:
        try:
            info = await answer(self._broker.redis.info("replication"))
        except ResponseError:
            return False  # a user who may not ask
        return "min_slaves_good_slaves" in info  # stated where min-replicas-to-write is set


def _check_models(jobs: Sequence[NewJob], terms: Terms) -> None:
    for job in jobs:
        check_model(job, terms.models)


def _fresh_models(offered: Sequence[tuple[str, float]], now_s: float) -> frozenset[str] | None:
    models = frozenset(model for model, seen_s in offered if seen_s > now_s - redis_keys.MODELS_TTL_S)
    return models or None
