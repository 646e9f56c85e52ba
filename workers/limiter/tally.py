"""What a process has still to tell the schedule, and its own counters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cost import Cost, TokenUsage

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """The upper part is said once and begins anew; the lower part counts for as long as the process lives."""

    refund_input: int = 0
    refund_output: int = 0
    settled: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    went_free: int = 0
    returned: list[float] = field(default_factory=list)
    unsaid_since: float = math.inf
    """Monotonic time of the first that has not been said."""

    calls: int = 0
    granted: int = 0
    stale: int = 0
    refused: int = 0

    def settle(self, cost: Cost, usage: TokenUsage | None) -> None:
        """A call has ended. Without usage its reservation stands."""
        reserved = cost.input_tokens + cost.output_tokens
        used = reserved
        if usage is not None:
            used = usage.input_tokens + usage.output_tokens
            self.refund_input += cost.input_tokens - usage.input_tokens
            self.refund_output += cost.output_tokens - usage.output_tokens
        self.settled += 1
        self.reserved_tokens += reserved
        self.used_tokens += used

    def refund(self, cost: Cost) -> None:
        """A reservation of which nothing was used."""
        self.refund_input += cost.input_tokens
        self.refund_output += cost.output_tokens

    def adjust(self, leased: Cost, taken: Cost) -> None:
        """A slot that was leased for one cost was taken by another."""
        self.refund_input += leased.input_tokens - taken.input_tokens
        self.refund_output += leased.output_tokens - taken.output_tokens

    def say(self) -> Tally:
        """All that is unsaid; from now on it counts as said."""
        said = replace(self)
        self.refund_input = self.refund_output = self.settled = 0
        self.reserved_tokens = self.used_tokens = self.went_free = 0
        self.returned = []
        self.unsaid_since = math.inf
        return said
