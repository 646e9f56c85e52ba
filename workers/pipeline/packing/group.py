"""The inputs that wait and may share calls, and when a call is made for them.

A call goes at once while none is under way. Otherwise more inputs join it: until it is full, or nothing has filled it
for a while, or, where a limit makes it wait, until it may be sent. What it carries is decided then and not before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tasks.wire.vocabulary import PRIORITIES

from ...limiter.waiting.wait_queue import WaitQueue
from ...prompt.failure import Failure
from ...prompt.parked import Parked
from ...providers.openai import MOST_ANSWER_BYTES
from ..limits import too_far
from .caps import Room
from .flow import Flow
from .inputs import refuses_base64, without_base64
from .pack import Pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tasks.wire.vocabulary import Priority

    from ...limiter import Cost, LimiterRegistry
    from ...providers import Answer
    from ..trip import Down, Route, Trip
    from .inputs import GroupKey
    from .member import Item, Member

__all__ = ["Group"]

BUSY_SHARE: Final = 0.25
"""Of the worker's places. A call that comes back has just left hundreds."""

STREAM_SHARE: Final = 0.125
"""Of a full call. Fewer inputs of late are no stream: the worker is busy with other jobs."""

QUIET_S: Final = 1.0
MOST_WAIT_S: Final = 5.0
"""A call of a busy worker waits until no input has come for so long, and no longer than this. What it carries has
waited for a place for longer."""

ESTIMATE_MARGIN: Final = 0.9
"""How much of a cap on tokens is used where they are estimated."""

COST_MARGIN: Final = 1.03
"""What waits may be a little larger than its mean; what is not used is given back at once."""

PACKED_NUMBER_BYTES: Final = 6
MOST_NUMBER_BYTES: Final = 32
LARGE_VECTOR_BYTES: Final = 3_072 * 13
PACKED_VECTOR_BYTES: Final = 4_096 * PACKED_NUMBER_BYTES
"""Of vectors of which no size is known yet: the widest in use."""


class Group:
    """One kind of call. Used on one running loop, without locks."""

    def __init__(
        self,
        key: GroupKey,
        route: Route,
        fields: Mapping[str, Any],
        *,
        limits: LimiterRegistry,
        wait_s: float,
        places: Callable[[], tuple[int, int, int]],
        weights: Mapping[str, float],
        now: Callable[[], float],
    ) -> None:
        """`fields` is what the body has beside its inputs. A call waits `wait_s` for more inputs, longer while many of
        the worker's `places` (taken, all, not started) are taken. Tenants take turns by their `weights`. `now`: epoch
        seconds.
        """
        self.route = route
        self.fields = dict(fields)
        self.vectors = key.vectors
        self.now = now
        self._counts_tokens = key.family == "tokens"
        self._limits = limits
        self._wait_s = wait_s
        self._places = places
        self._jobs = 0
        self._loop = asyncio.get_running_loop()
        self._line: WaitQueue[Member] = WaitQueue(weights)
        self._inputs = self._weight = 0
        self._asking: list[Pack] = []
        self._packs: set[Pack] = set()
        self._alone = 0
        self._flow = Flow()
        self._open_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._down: Down | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no input waits, and no call is under way."""
        return not (self._alone or self._packs or self._inputs)

    # ---- jobs

    def goes_alone(self) -> bool:
        """Whether a job of one input that comes now is sent at once by itself: no call is under way, none waits."""
        return self.is_idle and not self._more_is_near(self._loop.time())

    async def alone(self, trip: Trip, down: Down) -> Answer:
        """Send a job by itself."""
        self._flow.note(1, self._loop.time())
        self._down = down
        self._alone += 1
        self._jobs += 1
        try:
            return await self.send(trip)
        finally:
            self._alone -= 1
            self._jobs -= 1
            self._review()

    async def join(self, member: Member, down: Down) -> None:
        """Wait until each input of the job has its vector. Raises the job's `Failure`, `Parked`; safe to cancel."""
        self._down = down
        self._flow.note(len(member.values), self._loop.time())
        self._line.join(member)
        self._inputs += len(member.values)
        self._weight += sum(member.weights)
        self._jobs += 1
        self._review(member.priority)
        try:
            await member.done
        except BaseException:
            self._leave(member)
            raise
        finally:
            self._jobs -= 1

    def withdraw(self, member: Member, why: BaseException) -> None:
        """The job has no time to wait for its turn any longer; what is under way is waited for."""
        if not member.is_begun and not member.done.done():
            member.done.set_exception(why)

    def _leave(self, member: Member) -> None:
        self._drop_waiting(member)
        if member.done.done() and not member.done.cancelled():
            member.done.exception()  # if it was cancelled at the same time, nobody else is to be told
            return
        member.done.cancel()
        for pack in list(self._packs):
            if pack.carries(member):
                pack.let_go(member)
        if not self._inputs:
            for pack in list(self._asking):
                pack.task.cancel()

    def _drop_waiting(self, member: Member) -> None:
        if member.gone:
            return
        self._inputs -= len(member.values) - member.taken
        self._weight -= sum(member.weights[member.taken :])
        self._line.leave(member)

    # ---- when a call is made

    def room(self) -> Room:
        """What one call takes, as far as is known."""
        route, now = self.route, self._loop.time()
        size = self._limits.call_size(route.model)
        tokens = min(route.caps.tokens(route.model, now=now), size.most_tokens)
        weight = tokens if self._counts_tokens else int(tokens * size.chars_per_token * ESTIMATE_MARGIN)
        inputs = min(route.caps.inputs(route.model, now=now), MOST_ANSWER_BYTES // _vector_bytes(route, self.fields))
        return Room(max(1, inputs), max(1, weight))

    def _review(self, came: Priority | None = None) -> None:
        """Start the calls that are due. `came`: the priority of a job that has just come."""
        while self._inputs:
            room = self.room()
            inputs, weight = self._beyond(room, self._asking)
            if inputs <= 0 and weight <= 0:
                if came is not None and all(_is_before(came, pack.priority) for pack in self._asking):
                    self._start()
                break
            if inputs >= room.inputs or weight >= room.weight:
                self._start()
                continue
            now = self._loop.time()
            if not (self._alone or self._packs) and not self._more_is_near(now):
                self._start()
            elif self._open_since is None:
                self._open_since = now
                self._arm()
            break
        else:
            self._open_since = None

    def _beyond(self, room: Room, packs: Sequence[Pack]) -> Room:
        """What waits beyond that which these calls will carry."""
        covered = [pack.covers(room) for pack in packs]
        return Room(
            self._inputs - sum(each.inputs for each in covered), self._weight - sum(each.weight for each in covered)
        )

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._tick)

    def _tick(self) -> None:
        """The inputs beyond the calls that are asked for have waited."""
        self._timer = None
        room = self.room()
        inputs, weight = self._beyond(room, self._asking)
        if inputs <= 0 and weight <= 0:
            self._open_since = None
        elif self._more_is_near(self._loop.time()):
            self._arm()
        else:
            self._start()

    def _more_is_near(self, now: float) -> bool:
        """Whether further inputs are about to come, because the worker is busy with jobs on their way.

        They wait for its CPU then, and others behind them for places. Nobody who is in a hurry waits for them.
        """
        taken, places, unstarted = self._places()
        is_stream = self._flow.recent(now) >= STREAM_SHARE * self.room().inputs
        is_busy = unstarted or (is_stream and taken >= BUSY_SHARE * places and taken > self._jobs)
        if not is_busy or self._line.ahead_of("interactive"):
            return False
        since = now if self._open_since is None else self._open_since
        return now - self._flow.came_at < QUIET_S and now - since < MOST_WAIT_S

    def _start(self, *, stays: bool = False) -> None:
        self._open_since = None
        first = self._line.first()
        assert first is not None, "inputs wait"
        priority: Priority = next(name for name in PRIORITIES if self._line.ahead_of(name))
        pack = Pack(self, priority=priority, tenant=first.tenant, stays=stays)
        self._asking.append(pack)
        self._packs.add(pack)

    # ---- for packs

    async def send(self, trip: Trip) -> Answer:
        """Go down the ladder with a call. A provider that refuses base64 is asked for numbers, now and from now on."""
        down = self._down
        assert down is not None, "a job has come"
        try:
            return await down(trip)
        except Failure as failure:
            if not refuses_base64(failure, trip.job):
                raise
        self.route.caps.refuses_base64 = True
        self.fields.pop("encoding_format", None)
        trip.job, trip.pack = without_base64(trip.job), None
        return await down(trip)

    def cost(self, weight: int) -> Cost:
        """What a call of inputs of this weight takes of the limits."""
        if self._counts_tokens:
            return self._limits.estimate(self.route.model, input_chars=0, input_tokens=weight, writes=False)
        return self._limits.estimate(self.route.model, input_chars=weight, writes=False)

    def share_of(self, pack: Pack) -> Room:
        """About what a call would carry if it went now."""
        room = self.room()
        before = self._asking[: self._asking.index(pack)] if pack in self._asking else ()
        inputs, _ = self._beyond(room, before)
        if inputs <= 0:
            return Room(1, 1)
        weight = self._weight / self._inputs * min(inputs, room.inputs)
        if inputs > room.inputs:
            weight *= COST_MARGIN
        return Room(min(inputs, room.inputs), max(1, min(int(weight), room.weight)))

    def load(self, pack: Pack, most_tokens: int | None) -> list[Item]:
        """What a call carries that may be sent now: no more than it has room for, nor than these tokens."""
        if pack in self._asking:
            self._asking.remove(pack)
        room = self.room()
        weight = room.weight
        if most_tokens is not None:
            ratio = 1.0 if self._counts_tokens else self._limits.call_size(self.route.model).chars_per_token
            weight = min(weight, int(most_tokens * ratio))
        items = self._take(room.inputs, weight)
        self._open_since = None
        self._review()
        return items

    def _take(self, inputs: int, weight: int) -> list[Item]:
        """The first that wait, at least one."""
        items: list[Item] = []
        while len(items) < inputs and (member := self._line.first()) is not None:
            weights, start = member.weights, member.taken
            while member.taken < len(weights) and len(items) < inputs:
                next_weight = weights[member.taken]
                if items and next_weight > weight:
                    break
                weight -= next_weight
                items.append((member, member.taken))
                member.taken += 1
            if member.taken > start:
                member.calls += 1
                self._inputs -= member.taken - start
                self._weight -= sum(weights[start : member.taken])
            if member.taken < len(weights):
                break
            self._line.take(member)
        return items

    def park(self, pack: Pack, far: Parked) -> None:
        """The turn of a call is far away: the jobs that it would have carried give their places back."""
        self._asking.remove(pack)
        room = self.room()
        behind = sum(each.covers(room).inputs for each in self._asking)
        waiting = list(self._line)
        leaving: list[Member] = []
        for member in reversed(waiting):
            if self._inputs <= behind or len(leaving) >= room.inputs:
                break
            if not member.is_begun and not member.done.done():
                leaving.append(member)
                self._drop_waiting(member)
        # Of the turns that the jobs behind them get, each carries a full call.
        mean = max(1.0, sum(sum(each.weights) for each in leaving) / max(1, sum(len(each.values) for each in leaving)))
        gap_s = far.gap_s / max(1.0, min(room.inputs, room.weight / mean))
        for member in leaving:
            again = Parked(far.until_s, far.reason, gap_s=gap_s)
            member.done.set_exception(too_far(member.trip, again))
        if self._inputs > behind and not leaving:
            self._start(stays=True)

    def resolve(self, member: Member) -> None:
        """The job has all its vectors."""
        if not member.done.done():
            member.done.set_result(None)

    def resolve_failed(self, member: Member) -> None:
        """A call is over for the job. If it has failed, no further one is made, and it ends with the last under way."""
        if member.failure is None:
            return
        self._drop_waiting(member)
        if not member.calls and not member.done.done():
            member.done.set_exception(member.failure)

    def end(self, pack: Pack) -> None:
        """A call is over."""
        self._packs.discard(pack)
        if pack in self._asking:
            self._asking.remove(pack)
        pack.release_all()
        self._review()

    def learn(self, failure: Failure, inputs: int, weight: int) -> None:
        """So much was not too large."""
        ratio = 1.0 if self._counts_tokens else self._limits.call_size(self.route.model).chars_per_token
        tokens = max(1, int(weight / ratio))
        self.route.caps.learn(failure, inputs=inputs, tokens=tokens, now=self._loop.time())


def _vector_bytes(route: Route, fields: Mapping[str, Any]) -> int:
    """How large one vector of an answer may well be."""
    dimensions, is_packed = fields.get("dimensions"), fields.get("encoding_format") == "base64"
    known = route.sizes.known((dimensions, is_packed))
    if known is not None:
        return known
    if not isinstance(dimensions, int) or dimensions <= 0:
        return PACKED_VECTOR_BYTES if is_packed else LARGE_VECTOR_BYTES
    return dimensions * (PACKED_NUMBER_BYTES if is_packed else MOST_NUMBER_BYTES)


def _is_before(one: Priority, other: Priority) -> bool:
    return PRIORITIES.index(one) < PRIORITIES.index(other)
