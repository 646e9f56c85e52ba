"""What only this worker can't do is left to another that can."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from ...prompt.failure import Failure, Incapable
from ...prompt.parked import Parked
from ..offers import AGAIN_S, not_taken, with_api

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import SecretStr

    from config.catalog import Provider
    from tasks.wire.kinds import Api

    from ...providers import Answer
    from ..offers import Offers
    from ..trip import Down, Shape, Trip

__all__ = ["Elsewhere", "Others"]


class Others(Protocol):
    """The other workers: `offers.OtherWorkers`."""

    async def offered(self, alias: str, *, queue: str) -> bool: ...


class Elsewhere:
    """Leaves a job to another worker when this one lacks its model or a key for it."""

    def __init__(
        self,
        others: Others,
        offers: Offers,
        *,
        keys_of: Callable[[Provider], Sequence[SecretStr | None]],
        now: Callable[[], float],
    ) -> None:
        """`offers` is what this worker announces; `now` gives epoch seconds."""
        self._others = others
        self._offers = offers
        self._keys_of = keys_of
        self._now = now
        self._refused_keys: dict[str, set[SecretStr]] = {}

    def serves(self, shape: Shape) -> bool:
        return True

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        provider = trip.route.provider
        if self._offers.is_withdrawn(provider.name):
            await self.leave(trip, trip.route.alias)
        try:
            answer = await down(trip)
        except Failure as failure:
            if _is_refused_key(failure):
                self._note_refused(provider, trip.key)
            elif failure.http_status is not None:
                self._note_taken(provider)
            if self._is_only_here(trip, failure):
                await self.leave(trip, trip.route.alias)
            raise
        if self._refused_keys:
            self._note_taken(provider)
        return answer

    async def leave(self, trip: Trip, alias: str, api: Api | None = None) -> None:
        """Raise `Parked` if another worker can call the model of this name, by this endpoint if one is named;
        `expired` if the job's deadline passes first; else return."""
        deadline_at = trip.job.options.deadline_at
        trip.asks_others = True
        try:
            async with asyncio.timeout(None if deadline_at is None else max(0.0, deadline_at - self._now())) as limit:
                name = alias if api is None else with_api(alias, api)
                is_offered = await self._others.offered(name, queue=trip.queue)
        except TimeoutError:
            if not limit.expired():
                raise
            raise not_taken() from None
        trip.asks_others = False
        if is_offered:
            raise Parked(self._now() + AGAIN_S, "this worker can't call the model, another can", for_others=True)

    def _is_only_here(self, trip: Trip, failure: Failure) -> bool:
        """A call with a refused key has cost nothing."""
        if isinstance(failure, Incapable):
            return not trip.attempts_here
        if not _is_refused_key(failure) or trip.attempts_here != 1:
            return False
        return self._offers.is_withdrawn(trip.route.provider.name)

    def _note_refused(self, provider: Provider, key: SecretStr | None) -> None:
        if key is None:
            return
        refused = self._refused_keys.setdefault(provider.name, set())
        refused.add(key)
        if refused.issuperset(self._keys_of(provider)):
            self._offers.withdraw(provider.name)

    def _note_taken(self, provider: Provider) -> None:
        self._refused_keys.pop(provider.name, None)
        self._offers.restore(provider.name)


def _is_refused_key(failure: Failure) -> bool:
    return failure.code == "auth" and failure.http_status == HTTPStatus.UNAUTHORIZED
