"""Who waits, and whose turn it is. No clock and no I/O.

Interactive goes before normal, normal before bulk; but while lower classes wait, each is owed a share of the turns, so
that none starves. Within a class, tenants take turns by start-time fair queueing, by weight; within a tenant, the first
to come is the first to go.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tasks.wire.vocabulary import PRIORITIES, Priority

from ..cost import Cost

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping

    from ..permit import Permit

__all__ = ["LEAST_SHARES", "WaitQueue", "Waiter", "Waits"]


LEAST_SHARES: dict[Priority, float] = {"interactive": 0.0, "normal": 0.2, "bulk": 0.1}
"""Of all turns, while the class has anybody waiting."""

_ROUNDING = 1e-9
_TENANTS_KEPT = 1_024


class Waits(Protocol):
    """What waits in a queue. `units` is what its turn takes of its tenant's share; the queue sets `gone`."""

    priority: Priority
    tenant: str
    units: float
    gone: bool


W = TypeVar("W", bound=Waits)


@dataclass(slots=True, eq=False)
class Waiter:
    """One request that waits; see `Waits`. `until_s` is when it is too late. `grows` is given the waiter
    and says what it costs by now, where that may change until it has a slot."""

    cost: Cost
    answer: asyncio.Future[Permit]
    priority: Priority = "normal"
    tenant: str = ""
    units: float = 1.0
    until_s: float | None = None
    park_after_s: float | None = None
    movable: bool = False
    grows: Callable[[Waiter], Cost] | None = None
    has_slot: bool = False
    gone: bool = field(default=False, repr=False)


@dataclass(slots=True)
class _Tenant(Generic[W]):
    weight: float
    waiting: int = 0
    start: float = 0.0
    is_listed: bool = False
    waiters: deque[W] = field(default_factory=deque)

    def head(self) -> W | None:
        while self.waiters and self.waiters[0].gone:
            self.waiters.popleft()
        return self.waiters[0] if self.waiters else None


class _Class(Generic[W]):
    """The tenants of one priority. The heap holds each waiting tenant once, by the start of its next turn."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._tenants: dict[str, _Tenant[W]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = count()
        self._now = 0.0

    def join(self, waiter: W) -> None:
        tenant = self._tenants.get(waiter.tenant)
        if tenant is None:
            tenant = self._tenants[waiter.tenant] = _Tenant(self._weights.get(waiter.tenant, 1.0))
        if tenant.head() is None:
            # A tenant that was away has saved up nothing.
            tenant.start = max(tenant.start, self._now)
        if not tenant.is_listed:
            tenant.is_listed = True
            heappush(self._heap, (tenant.start, next(self._order), waiter.tenant))
        tenant.waiters.append(waiter)
        tenant.waiting += 1

    def first(self) -> W | None:
        while self._heap:
            start, order, name = self._heap[0]
            tenant = self._tenants[name]
            head = tenant.head()
            if head is not None and start == tenant.start:
                return head
            heappop(self._heap)
            tenant.is_listed = head is not None
            if head is not None:
                heappush(self._heap, (tenant.start, order, name))
        return None

    def waiting_of(self, name: str) -> int:
        tenant = self._tenants.get(name)
        return tenant.waiting if tenant else 0

    def leave(self, waiter: W) -> None:
        waiter.gone = True
        self._tenants[waiter.tenant].waiting -= 1

    def take(self, waiter: W) -> None:
        tenant = self._tenants[waiter.tenant]
        self._now = max(self._now, tenant.start)
        tenant.start += waiter.units / tenant.weight
        self.leave(waiter)
        if len(self._tenants) > _TENANTS_KEPT:
            self._forget_idle()

    def upcoming(self) -> Iterator[W]:
        """The order in which turns would go if nobody came and nobody left."""
        starts = {name: tenant.start for name, tenant in self._tenants.items()}
        lines = {
            name: (each for each in list(tenant.waiters) if not each.gone) for name, tenant in self._tenants.items()
        }
        heap = [(starts[name], order, name) for _, order, name in self._heap]
        heapify(heap)
        while heap:
            _, order, name = heappop(heap)
            waiter = next(lines[name], None)
            if waiter is not None:
                yield waiter
                starts[name] += waiter.units / self._tenants[name].weight
                heappush(heap, (starts[name], order, name))

    def _forget_idle(self) -> None:
        idle = [name for name, each in self._tenants.items() if not each.is_listed and each.start <= self._now]
        for name in idle:
            del self._tenants[name]


class WaitQueue(Generic[W]):
    """Everybody who waits for one limiter in this process."""

    def __init__(self, tenant_weights: Mapping[str, float] | None = None) -> None:
        self._classes: dict[Priority, _Class[W]] = {name: _Class(tenant_weights or {}) for name in PRIORITIES}
        self._waiting = dict.fromkeys(PRIORITIES, 0)
        self._owed = dict.fromkeys(PRIORITIES, 0.0)

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def __iter__(self) -> Iterator[W]:
        """Everybody, class by class."""
        for each in self._classes.values():
            yield from each.upcoming()

    def ahead_of(self, priority: Priority) -> int:
        """How many wait in this class and those above it."""
        return sum(self._waiting[each] for each in PRIORITIES[: PRIORITIES.index(priority) + 1])

    def waiting_of(self, tenant: str, priority: Priority) -> int:
        """How many of the tenant wait in this class."""
        return self._classes[priority].waiting_of(tenant)

    def join(self, waiter: W) -> None:
        self._classes[waiter.priority].join(waiter)
        self._waiting[waiter.priority] += 1

    def leave(self, waiter: W) -> None:
        """Go away without a turn."""
        if not waiter.gone:
            self._classes[waiter.priority].leave(waiter)
            self._waiting[waiter.priority] -= 1

    def first(self) -> W | None:
        """Whose turn it is."""
        priority = _class_in_turn(self._waiting, self._owed)
        return None if priority is None else self._classes[priority].first()

    def take(self, waiter: W) -> None:
        """It has its turn, whether or not it was the first."""
        self._classes[waiter.priority].take(waiter)
        self._waiting[waiter.priority] -= 1
        _serve(self._owed, waiter.priority, self._waiting)

    def upcoming(self, most: int) -> list[W]:
        """The first `most` waiters in the order of their turns, as it stands."""
        orders = {name: each.upcoming() for name, each in self._classes.items()}
        left, owed = self._waiting.copy(), self._owed.copy()
        found: list[W] = []
        while len(found) < most and (priority := _class_in_turn(left, owed)) is not None:
            found.append(next(orders[priority]))
            left[priority] -= 1
            _serve(owed, priority, left)
        return found


def _class_in_turn(waiting: Mapping[Priority, int], owed: Mapping[Priority, float]) -> Priority | None:
    for name in reversed(PRIORITIES):
        if waiting[name] and owed[name] >= 1.0 - _ROUNDING:
            return name
    for name in PRIORITIES:
        if waiting[name]:
            return name
    return None


def _serve(owed: dict[Priority, float], served: Priority, waiting: Mapping[Priority, int]) -> None:
    """Each class that still waits earns its least share of this turn; the one that has had it pays."""
    for name, share in LEAST_SHARES.items():
        if name == served:
            owed[name] = max(0.0, owed[name] - 1.0)
        owed[name] = min(owed[name] + share, 2.0) if waiting[name] else 0.0
