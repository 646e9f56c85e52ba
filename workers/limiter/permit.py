"""The leave to send one request now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from .cost import Cost, TokenUsage
    from .limiter import Limiter

__all__ = ["Permit"]


class Permit:
    """One request may be sent, now, with `key`. Settle it when the call is over::

        async with permit:
            answer = await send(permit.key)
            permit.settle(answer.usage)

    A call that ends in another way is given up. Of `settle`, `give_up` and `give_back` the first counts.
    """

    __slots__ = ("_is_open", "_limiter", "cost", "epoch", "instant", "key", "owner")

    def __init__(self, limiter: Limiter, cost: Cost, epoch: int, instant: float | None = None) -> None:
        self.key: Any = None
        """Of the keys that were offered, the one to send with."""
        self.owner: Callable[[], Limiter] | None = None
        """Opens the model's own limiter, where this one is shared by models of whose limits nothing is known."""
        self.cost = cost
        self.epoch = epoch
        self.instant = instant
        """When the schedule has charged it, in the schedule's time; None where that is not known."""
        self._limiter = limiter
        self._is_open = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give_up()

    def __repr__(self) -> str:
        return f"<Permit {'open' if self._is_open else 'settled'}, {self.cost}>"

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit of tokens holds, so that no more may be sent than was reserved."""
        return self._limiter.plan.counts_tokens

    def resize(self, cost: Cost) -> None:
        """What is going to be sent costs this, and not what was reserved. Before it is sent."""
        self._limiter.resize(self, cost)
        self.cost = cost

    def settle(self, usage: TokenUsage | None = None) -> None:
        """An answer came. `usage` is what the provider counted; None keeps the reservation. Once; more do nothing."""
        if self._is_open:
            self._is_open = False
            self._limiter.settle(self, usage)

    def give_up(self) -> None:
        """The call broke. What it took nobody knows: its reservation stands, and does not count as used."""
        if self._is_open:
            self._is_open = False
            self._limiter.give_up(self)

    def give_back(self) -> None:
        """Nothing was sent, or the provider refused it: no tokens were taken."""
        if self._is_open:
            self._is_open = False
            self._limiter.give_back(self)

    def rate_limited(self, retry_after_s: float | None, headers: Mapping[str, str]) -> float | None:
        """The provider answered 429: everybody stops, for `retry_after_s` or what `headers` (lower-case names) say.

        Returns which of both it was, in seconds; None where neither says anything. Settles the permit too: a refused
        request took no tokens.
        """
        limiter = self._limiter if self.owner is None else self.owner()
        asked_s = limiter.rate_limited(self, retry_after_s, headers)
        self.give_back()
        return asked_s

    def observe(self, headers: Mapping[str, str]) -> None:
        """Learn from the rate headers of any answer. Cheap; header names are looked up in lower case."""
        if self.owner is None:
            self._limiter.observe(headers)
        elif self._limiter.has_limits(headers):
            self.owner().observe(headers)
