"""A provider's key, which gateways are known to echo: answers are stored, streamed and shown without it."""

from __future__ import annotations

from typing import Final

__all__ = ["STRUCK", "is_secret"]

STRUCK: Final = "[key]"
"""What stands in its place."""

_LEAST_CHARS: Final = 12


def is_secret(key: str) -> bool:
    """Whether it has to be struck. A shorter key is no secret, such as "none", and may be a word of an answer."""
    return len(key) >= _LEAST_CHARS
