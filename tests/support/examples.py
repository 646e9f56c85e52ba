"""How many examples hypothesis tries: a test's own number, or the profile's share of it."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["examples"]

FULL = 100
"""Of the profile for all tests; another profile's number is a share of this one."""
LEAST = 5


def examples(number: int) -> int:
    """For `max_examples`: the number, or a quarter of it where `make check` tries a quarter of all examples."""
    return max(LEAST, number * settings().max_examples // FULL)
