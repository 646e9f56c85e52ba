"""The outages that a process knows of, and the routes that they hold back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from .health import Health, Target
from .news import tell_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .breakers import Breakers
    from .outage import Outage
    from .window import BreakerPolicy

__all__ = ["Known", "whole"]


def whole(target: Target) -> Target:
    """The provider itself: what can't be reached is out for all its models."""
    return Target(target.provider, "")


class Known:
    """Of each target at most one outage. A route's health lives for as long as the route."""

    def __init__(self, policy: BreakerPolicy, *, now: Callable[[], float]) -> None:
        self._policy = policy
        self._now = now
        self._healths: WeakValueDictionary[Target, Health] = WeakValueDictionary()
        self._outages: dict[Target, Outage] = {}

    def health(self, target: Target, address: str, breakers: Breakers) -> Health:
        """That of a route; made when it is first asked for."""
        if (health := self._healths.get(target)) is None:
            health = self._healths[target] = Health(target, address, breakers, self._policy)
            self._refresh(health)
        return health

    def used(self, target: Target) -> Health | None:
        """The health of a target that this process has a route to."""
        return self._healths.get(target)

    def healths(self) -> Iterator[Health]:
        return iter(list(self._healths.values()))

    def outage(self, target: Target) -> Outage | None:
        return self._outages.get(target)

    def outages(self) -> list[tuple[Target, Outage]]:
        return list(self._outages.items())

    def begin(self, target: Target, outage: Outage) -> None:
        """It takes the place of the one before."""
        self._outages[target] = outage
        self._refresh_all(target)

    def end(self, target: Target, outage: Outage) -> None:
        """It is over, unless another one has begun."""
        if self._outages.get(target) is outage:
            del self._outages[target]
            self._refresh_all(target)
            tell_over(target, outage, after_s=self._now() - outage.since)

    def _refresh_all(self, target: Target) -> None:
        for health in self.healths():
            if health.target.provider == target.provider:
                self._refresh(health)

    def _refresh(self, health: Health) -> None:
        keys = whole(health.target), health.target
        outages = tuple(outage for key in keys if (outage := self._outages.get(key)) is not None)
        if bool(outages) != bool(health.outages):
            health.window.clear()
        health.outages = outages
