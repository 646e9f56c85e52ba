"""What a process has still to tell the schedule, and its own counters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..cost import UNKNOWN
from ..rate import BIN_S

if TYPE_CHECKING:
    from ..cost import Cost, TokenUsage

__all__ = ["Refund", "Settlements"]


@dataclass(slots=True)
class Refund:
    """Tokens that were charged and not taken, of the slots in one bin of the schedule's time (`BIN_S`; 0 = of now).

    Negative: more was taken than charged.
    """

    bin: int
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Settlements:
    """The upper part is said once and begins anew; the lower part counts for as long as the process lives.

    Each `instant` is that of the slot, in the schedule's time; None where the schedule has not been heard of yet.
    """

    refunds: dict[int, Refund] = field(default_factory=dict)
    settled: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    went_free: int = 0
    unsent: int = 0
    """Slots that no request used, and requests that the provider has not counted, because it refused them."""

    returned: list[float] = field(default_factory=list)
    unsaid_since: float = math.inf
    """Monotonic time of the first that has not been said."""

    in_flight: int = 0
    stale: int = 0

    def settle(self, cost: Cost, usage: TokenUsage | None, instant: float | None) -> None:
        """An answer came. Without usage its reservation stands."""
        used = reserved = cost.input_tokens + cost.output_tokens
        if usage is not None:
            used = usage.input_tokens + usage.output_tokens
            if cost is UNKNOWN:
                reserved = used
            self._correct(instant, cost.input_tokens - usage.input_tokens, cost.output_tokens - usage.output_tokens)
        self.settled += 1
        self.reserved_tokens += reserved
        self.used_tokens += used

    def refund(self, cost: Cost, instant: float | None) -> None:
        """A slot or a reservation of which nothing was used."""
        self.unsent += 1
        self._correct(instant, cost.input_tokens, cost.output_tokens)

    def adjust(self, leased: Cost, taken: Cost, instant: float | None) -> None:
        """A slot that was leased for one cost was taken by another."""
        self._correct(instant, leased.input_tokens - taken.input_tokens, leased.output_tokens - taken.output_tokens)

    def charge(self, cost: Cost, instant: float | None) -> None:
        """A request went without a slot of the schedule, which has yet to hear of it."""
        self.went_free += 1
        self._correct(instant, -cost.input_tokens, -cost.output_tokens)

    def say(self) -> Settlements:
        """All that is unsaid; from now on it counts as said."""
        said = replace(self)
        self.refunds = {}
        self.settled = self.reserved_tokens = self.used_tokens = self.went_free = self.unsent = 0
        self.returned = []
        self.unsaid_since = math.inf
        return said

    def _correct(self, instant: float | None, input_tokens: int, output_tokens: int) -> None:
        if not input_tokens and not output_tokens:
            return
        bin_ = 0 if instant is None else math.floor(instant / BIN_S)
        if (refund := self.refunds.get(bin_)) is None:
            refund = self.refunds[bin_] = Refund(bin_)
        refund.input_tokens += input_tokens
        refund.output_tokens += output_tokens
