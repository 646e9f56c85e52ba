"""One call for many inputs, and what becomes of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ...prompt.failure import Failure
from ...prompt.job import Options, PromptJob
from ...prompt.parked import Parked
from ..trip import Trip
from ..vectors import in_order
from .caps import Room
from .member import envelope_of, whole_numbers
from .shares import share_out, shared_usage
from .sift import Refused, sift
from .too_long import place_in_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.results import Usage
    from tasks.wire.vocabulary import Priority

    from ...limiter import Cost, Permit, Waiter
    from ...providers import Answer
    from .group import Group
    from .member import Item, Member

__all__ = ["Pack"]

logger = logging.getLogger("promptmill.packing")

ID_PREFIX: Final = "pack-"


class _Empty(Exception):
    """Nobody waits any more for whom the call would be made."""


class Pack:
    """A call that is made when it may be sent, with what waits then. A `trip.Load`."""

    def __init__(self, group: Group, *, priority: Priority, tenant: str, stays: bool = False) -> None:
        """`stays`: it waits in its place, however far its turn is."""
        self.id = f"{ID_PREFIX}{uuid4().hex[:16]}"
        self.priority: Priority = priority
        self._group = group
        self._options = Options(tenant=tenant or None, priority=priority, vectors=group.vectors)
        self._items: list[Item] = []
        self._calls = 0
        self._asked = Room(1, 1)
        self._waiter: Waiter | None = None
        self._open: dict[int, Member] = {}
        """The jobs with inputs in it that have not failed."""
        self._trip = self._trip_of((), stays=stays)
        self._trip.pack = self
        self.task = asyncio.create_task(self._run())

    # ---- trip.Load

    def cost(self, waiter: Waiter | None = None) -> Cost:
        """See `trip.Load`."""
        self._waiter = waiter
        self._asked = self._group.share_of(self)
        return self._group.cost(self._asked.weight)

    def covers(self, room: Room) -> Room:
        """What it will carry: what a slot was sold for, or else as much as there is room for by then."""
        return self._asked if self._waiter is not None and self._waiter.has_slot else room

    def seal(self, permit: Permit) -> None:
        """See `trip.Load`."""
        self._items = self._group.load(self, permit.cost.input_tokens if permit.counts_tokens else None)
        self._open = {id(member): member for member, _ in self._items}
        if not self._items:
            permit.give_back()
            raise _Empty
        self._trip.job = self._job(self._items)
        permit.resize(self._group.cost(_weight(self._items)))

    # ---- the call

    async def _run(self) -> None:
        group = self._group
        try:
            answer = await group.send(self._trip)
        except _Empty:
            pass
        except Failure as failure:
            await self._failed(failure)
        except Parked as far:
            group.park(self, far)
        except asyncio.CancelledError:
            pass  # nobody is left, or the worker stops and its jobs were cancelled too
        except Exception as bug:  # noqa: BLE001 - it is told where the jobs are, which end with it
            self._crashed(bug)
        else:
            self.deliver(self._items, answer, self._trip)
        finally:
            group.end(self)

    async def _failed(self, failure: Failure) -> None:
        self._load_unless_sealed()
        try:
            await sift(self, self._items, failure, self._trip)
        except asyncio.CancelledError:
            pass
        except Exception as bug:  # noqa: BLE001 - see `_run`
            self._crashed(bug)

    def _load_unless_sealed(self) -> None:
        """It never had its turn: what is wrong meets those that it would have carried."""
        if not self._items:
            self._items = self._group.load(self, None)
            self._open = {id(member): member for member, _ in self._items}

    async def ask(self, items: Sequence[Item]) -> tuple[Answer, Trip]:
        """Call for some of the inputs; it waits in its place. Raises `Refused`."""
        self._calls += 1
        trip = self._trip_of(items, stays=True)
        try:
            return await self._group.send(trip), trip
        except Failure as failure:
            raise Refused(failure, trip) from None

    def deliver(self, items: Sequence[Item], answer: Answer, made: Trip) -> None:
        """Each input's vector to its job, and its share of what the call took."""
        rows = in_order(answer.response["data"])
        weights = [member.weights[at] for member, at in items]
        usages = _shared(answer.usage, weights)
        counts = _shared_counts(answer.response.get("usage"), weights)
        envelope = envelope_of(answer)
        for (member, at), row, usage, counted in zip(items, rows, usages, counts, strict=True):
            if not member.done.done():
                member.envelope = envelope
                member.receive(at, row, usage, counted)
        for member in _members(items):
            member.note_call(made)
            if member.is_whole:
                self._group.resolve(member)

    def fail(self, items: Sequence[Item], failure: Failure, made: Trip) -> None:
        """The call has failed for these."""
        usages = _shared(failure.usage, [member.weights[at] for member, at in items])
        for (member, at), usage in zip(items, usages, strict=True):
            if member.failure is not None or member.done.done():
                continue
            twin = failure.twin()
            twin.usage = usage
            if failure.is_refusal and member.total > 1:
                twin.advise(_named(member, [at for each, at in items if each is member]))
            member.fail(twin, made)
            self._release(member)

    def release_all(self) -> None:
        """It is over for all of them."""
        for member in list(self._open.values()):
            self._release(member)

    def _release(self, member: Member) -> None:
        if self._open.pop(id(member), None) is not None:
            member.calls -= 1
        self._group.resolve_failed(member)

    def fits(self, items: Sequence[Item]) -> bool:
        """Whether one call takes as many, as far as is known."""
        room = self._group.room()
        return len(items) <= room.inputs and _weight(items) <= room.weight

    def learn(self, failure: Failure, items: Sequence[Item]) -> None:
        """A call of more was too large, one of these was not."""
        self._group.learn(failure, len(items), _weight(items))

    def let_go(self, member: Member) -> None:
        """The job goes away."""
        if self._open.pop(id(member), None) is not None:
            member.note_cut(self._trip, now=self._group.now())
        if not self._open:
            self.task.cancel()

    def carries(self, member: Member) -> bool:
        """Whether the job has inputs in it that have not failed."""
        return id(member) in self._open

    def _crashed(self, bug: Exception) -> None:
        self._load_unless_sealed()
        for member in _members(self._items):
            if not member.done.done():
                member.done.set_exception(bug)

    def _trip_of(self, items: Sequence[Item], *, stays: bool) -> Trip:
        group = self._group
        trip = Trip(self._job(items), group.now(), held=[])
        trip.route, trip.is_shared, trip.stays = group.route, True, stays
        return trip

    def _job(self, items: Sequence[Item]) -> PromptJob:
        name = f"{self.id}-{self._calls}" if self._calls else self.id
        if items and logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s has inputs of the jobs %s", name, ", ".join(each.trip.job.id for each in _members(items)))
        inputs = [member.values[at] for member, at in items]
        model = self._group.route.alias
        return PromptJob(name, "embed", model, {**self._group.fields, "input": inputs}, self._options, is_clients=True)


def _weight(items: Sequence[Item]) -> int:
    return sum(member.weights[at] for member, at in items)


def _named(member: Member, positions: Sequence[int]) -> str:
    """Which inputs of the job the provider does not take, by their place in it."""
    places = sorted(place_in_job(member.place(at), member.trip.shortened or ()) for at in positions)
    first, last = places[0], places[-1]
    if first == last:
        return f"it is input {first} of the job, counted from 0"
    return f"it is one of the inputs {first} to {last} of the job, counted from 0"


def _members(items: Sequence[Item]) -> list[Member]:
    """Each job once, in order."""
    return list({id(member): member for member, _ in items}.values())


def _shared(usage: Usage | None, weights: Sequence[int]) -> Sequence[Usage | None]:
    return [None] * len(weights) if usage is None else shared_usage(usage, weights)


def _shared_counts(usage: Any, weights: Sequence[int]) -> list[dict[str, int]]:
    """The whole numbers of the answer's `usage`, shared out."""
    columns = {name: share_out(value, weights) for name, value in whole_numbers(usage).items()}
    return [{name: column[at] for name, column in columns.items()} for at in range(len(weights))]
