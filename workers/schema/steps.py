"""What follows an answer that does not fit its schema. Decides with values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from .reading import Reading

__all__ = ["LONGER", "Repairs", "Step", "larger_limit", "next_step"]

Step = Literal["longer", "asked_again"]

LONGER: Final = 4
"""How many times as many tokens a truncated answer is permitted the second time."""

LEAST_LIMIT: Final = 256
"""What a truncated answer that was shorter is taken to have had: a provider may not say how long it was."""


@dataclass(slots=True)
class Repairs:
    """What a job's further calls have come to. A parked job remembers it.

    `step` is the one under way, `error` what the further question says, `max_tokens` the raised limit: these three are
    of the model that is being asked. `calls` and `last_answer` are the job's.
    """

    calls: int = 0
    step: Step | None = None
    error: str = ""
    max_tokens: int | None = None
    last_answer: str | None = None

    def begin(self, step: Step, *, error: str, larger: int | None) -> None:
        """One more call."""
        self.calls += 1
        self.step, self.error = step, error
        if step == "longer":
            self.max_tokens = larger

    def forget_model(self) -> None:
        """Another model begins anew."""
        self.step, self.error, self.max_tokens = None, "", None


def next_step(reading: Reading, repairs: Repairs, *, permitted: int, larger: int | None) -> Step | None:
    """What to do within the `permitted` further calls; None: give up. `larger` is the limit that a truncated answer
    would be permitted, None where it can't be raised.

    A truncated answer gets more room, once: to ask the same again costs the same and brings the same.
    """
    if reading.is_filtered or repairs.calls >= permitted:
        return None
    if reading.is_cut:
        return "longer" if larger is not None and repairs.max_tokens is None else None
    return "asked_again"


def larger_limit(limit: int | None, *, used: int, most: int | None) -> int | None:
    """The raised limit of a truncated answer, at most the model's; None: it can't be raised.

    `limit` is the job's. Without one a limit of the provider's was met after `used` tokens: many servers have a small
    one for requests that state none. Where it was all that the model can, the provider refuses more.
    """
    reached = limit or used
    larger = LONGER * (limit or max(used, LEAST_LIMIT))
    if most is not None:
        larger = min(larger, most)
    return larger if larger > reached else None
