"""Why a request was not admitted; one whose slot is far away is `Parked` instead::

NotAdmitted
├── TooLargeForLimit     no wait would help
└── TooLate              its deadline comes before its slot
"""

from __future__ import annotations

__all__ = ["Moved", "NotAdmitted", "TooLargeForLimit", "TooLate"]

_WORDS = {"tokens": "tokens", "input": "input tokens", "output": "output tokens"}


class Moved(Exception):
    """The waiter may find another key free."""


class NotAdmitted(Exception):
    """Base of what `LimiterRegistry.admit` raises."""


class TooLargeForLimit(NotAdmitted):
    """The request alone is larger than what the provider lets through in a minute."""

    def __init__(self, dimension: str, *, cost: int, limit: int) -> None:
        words = _WORDS.get(dimension, dimension)
        super().__init__(
            f"the request takes at least {cost} {words}, but the limit is {limit} a minute, so it can never be sent; "
            "shorten it, or lower its max_tokens, or raise the model's limits in the catalogue if the account has more"
        )
        self.dimension = dimension
        self.cost = cost
        self.limit = limit


class TooLate(NotAdmitted):
    """The job's deadline passes before its slot can come."""
