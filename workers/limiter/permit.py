"""The leave to send one request now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .headers import rate_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .cost import Cost, TokenUsage

__all__ = ["Issuer", "Permit"]


class Issuer(Protocol):
    """The limiter behind a permit."""

    def settle(self, permit: Permit, usage: TokenUsage | None) -> None: ...
    def give_up(self, permit: Permit) -> None: ...
    def give_back(self, permit: Permit) -> None: ...
    def rate_limited(self, permit: Permit, asked_s: float | None, headers: Mapping[str, str]) -> None: ...
    def observe(self, headers: Mapping[str, str]) -> None: ...


class Permit:
    """One request may be sent, now, with `key`. Settle it when the call is over, in whatever way it ended."""

    __slots__ = ("_is_open", "_issuer", "cost", "epoch", "instant", "key", "owner")

    def __init__(self, issuer: Issuer, cost: Cost, *, epoch: int, instant: float | None = None) -> None:
        self.key: Any = None
        """Of the keys that were offered, the one to send with."""
        self.owner: Callable[[], Issuer] | None = None
        """Opens the model's own limiter, where the issuer is one that models share of whose limits nothing is known."""
        self.cost = cost
        self.epoch = epoch
        self.instant = instant
        """When the schedule has charged it, in the schedule's time; None where that is not known."""
        self._issuer = issuer
        self._is_open = True

    def __repr__(self) -> str:
        return f"<Permit {'open' if self._is_open else 'settled'}, {self.cost}>"

    def settle(self, usage: TokenUsage | None = None) -> None:
        """An answer came. `usage` is what the provider counted; None keeps the reservation. Once; more do nothing."""
        if self._is_open:
            self._is_open = False
            self._issuer.settle(self, usage)

    def give_up(self) -> None:
        """The call broke. What it took nobody knows: its reservation stands, and does not count as used."""
        if self._is_open:
            self._is_open = False
            self._issuer.give_up(self)

    def give_back(self) -> None:
        """Nothing was sent, or the provider refused it: no tokens were taken."""
        if self._is_open:
            self._is_open = False
            self._issuer.give_back(self)

    def rate_limited(self, retry_after_s: float | None, headers: Mapping[str, str]) -> None:
        """The provider answered 429: everybody stops, for `retry_after_s` or what `headers` (lower-case names) say.

        Settles the permit too: a refused request took no tokens.
        """
        issuer = self._issuer if self.owner is None else self.owner()
        issuer.rate_limited(self, retry_after_s, headers)
        self.give_back()

    def observe(self, headers: Mapping[str, str]) -> None:
        """Learn from the rate headers of any answer. Cheap; header names are looked up in lower case."""
        if self.owner is None:
            self._issuer.observe(headers)
        elif rate_headers(headers):
            self.owner().observe(headers)
