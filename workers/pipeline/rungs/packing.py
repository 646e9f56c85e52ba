"""Embeddings of many jobs in one call, and of one job in several."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from ..limits import too_late
from ..packing.group import Group
from ..packing.inputs import family_of, group_key, in_base64, inputs_of, weight_of
from ..packing.member import Member
from ..record_limit import LEARN_FROM, check_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import SecretStr

    from config.catalog import Provider

    from ...limiter import LimiterRegistry
    from ...prompt.job import PromptJob
    from ...providers import Answer
    from ..packing.inputs import Family, GroupKey
    from ..trip import Down, Route, Shape, Trip

__all__ = ["Packing"]

MOST_GROUPS: Final = 256
"""Beyond so many, those that nobody uses are forgotten."""


class Packing:
    """Sends the inputs of many jobs in one call, and a large job in several."""

    def __init__(
        self,
        limits: LimiterRegistry,
        *,
        keys_of: Callable[[Provider], Sequence[SecretStr | None]],
        now: Callable[[], float],
        wait_s: float,
        places: Callable[[], tuple[int, int, int]],
        weights: Mapping[str, float],
        compresses: bool,
    ) -> None:
        """`wait_s`, `places`, `weights`, `now`: see `Group`. `compresses`: whether large results of our client's jobs
        are stored compressed.
        """
        self._limits = limits
        self._keys_of = keys_of
        self._now = now
        self._wait_s = wait_s
        self._places = places
        self._weights = weights
        self._compresses = compresses
        self._groups: dict[GroupKey, Group] = {}

    def serves(self, shape: Shape) -> bool:
        return shape.kind == "embed"

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        asked = trip.job
        inputs = inputs_of(asked.body)
        family = family_of(inputs)
        if family is None:
            return await down(trip)
        trip.job = _as_sent(asked, trip.route)
        try:
            return await self._send(trip, down, inputs, family)
        finally:
            trip.job = asked

    async def _send(self, trip: Trip, down: Down, inputs: Sequence[Any], family: Family) -> Answer:
        group = self._group(trip, family)
        is_single = len(inputs) == 1
        if is_single and (trip.is_probe or group.goes_alone() or weight_of(inputs[0]) > group.room().weight):
            return await group.alone(trip, down)
        tried = await _probe(trip, down, group, inputs) if trip.is_probe else None
        member = self._member(trip, inputs)
        if tried is not None:
            member.begin_with(tried)
        return await self._join(trip, down, group, member)

    async def _join(self, trip: Trip, down: Down, group: Group, member: Member) -> Answer:
        if member.is_whole:
            return member.answer()
        last_call = self._withdraw_in_time(trip, group, member)
        try:
            await group.join(member, down)
        finally:
            if last_call is not None:
                last_call.cancel()
        answer = member.answer()
        if member.total >= LEARN_FROM:
            job = trip.job
            await check_answer(answer, _size(answer), compresses=self._compresses and job.is_clients)
        return answer

    def _member(self, trip: Trip, inputs: Sequence[Any]) -> Member:
        options, total = trip.job.options, len(inputs)
        places = [place for place in range(total) if place not in trip.rows] if trip.rows else None
        values = inputs if places is None else [inputs[place] for place in places]
        return Member(
            trip,
            values,
            [weight_of(value) for value in values],
            asyncio.get_running_loop().create_future(),
            priority=options.priority,
            tenant=options.tenant or "",
            places=places,
            total=total,
            units=float(len(values)),
        )

    def _withdraw_in_time(self, trip: Trip, group: Group, member: Member) -> asyncio.TimerHandle | None:
        """A job with a deadline, or with another model to turn to, does not wait for a turn beyond that."""
        until = trip.wait_until
        if until is None:
            return None
        keys, left_s = self._keys_of(trip.route.provider), until - self._now()
        late = too_late(trip, "the job's time passes before the provider's limits let it be sent")
        if self._limits.expected_wait_s(trip.route.model, keys, trip.job.options.priority) > left_s:
            raise late
        return asyncio.get_running_loop().call_later(max(0.0, left_s), group.withdraw, member, late)

    def _group(self, trip: Trip, family: Family) -> Group:
        key = group_key(trip.job, trip.route.alias, family)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MOST_GROUPS:
                self._groups = {each: kept for each, kept in self._groups.items() if not kept.is_idle}
            fields = {name: value for name, value in trip.job.body.items() if name != "input"}
            group = self._groups[key] = Group(
                key,
                trip.route,
                fields,
                limits=self._limits,
                wait_s=self._wait_s,
                places=self._places,
                weights=self._weights,
                now=self._now,
            )
        return group


async def _probe(trip: Trip, down: Down, group: Group, inputs: Sequence[Any]) -> Answer:
    """The provider is out as far as is known, and this job tries for all: with one of its inputs, which a call surely
    takes."""
    rows, job = trip.rows or {}, trip.job
    place = next(place for place in range(len(inputs)) if place not in rows)
    trip.job = replace(job, body={**job.body, "input": [inputs[place]]})
    try:
        answer = await group.alone(trip, down)
    finally:
        trip.job = job
    trip.rows = {**rows, place: {**answer.response["data"][0], "index": place}}
    return answer


def _as_sent(job: PromptJob, route: Route) -> PromptJob:
    """With the format in which vectors are asked for inside, where the user did not say."""
    if job.options.vectors != "base64" or "encoding_format" in job.body:
        return job
    if route.provider.vectors != "base64" or route.caps.refuses_base64:
        return job
    return in_base64(job)


def _size(answer: Answer) -> int:
    """About how many bytes the answer's vectors take as JSON."""
    rows = answer.response["data"]
    return len(rows) * (len(orjson.dumps(rows[0])) + 1)
