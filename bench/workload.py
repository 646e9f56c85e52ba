"""The work, the same for all: prompts of about 400 characters, each different, so that nothing can be cached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["MODEL", "bodies", "body"]

MODEL = "gpt-4o-mini"

_STORY = "A mill grinds {number} sacks of rye before noon and as many of wheat after it. " + (
    "Each sack weighs fifty kilograms, a tenth of the rye is lost as bran, and the carter takes away what forty "
    "horses can pull on the road to town, which the rain of the last week has turned to mud in three places. "
    "How many kilograms of flour are left in the mill in the evening, and how many carts would have been needed?"
)


def body(number: int) -> dict[str, Any]:
    """The request body of prompt `number`."""
    return {"model": MODEL, "messages": [{"role": "user", "content": _STORY.format(number=number)}]}


def bodies(count: int, *, first: int = 0) -> Iterator[dict[str, Any]]:
    """So many of them."""
    return map(body, range(first, first + count))
