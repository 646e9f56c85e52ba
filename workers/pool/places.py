"""How many of this worker's places are taken, for whoever decides by it whether further jobs are on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Places", "look", "show"]


class Places(NamedTuple):
    """Jobs that were taken and have not ended, how many there may be, and how many of them have yet to start."""

    taken: int
    of: int
    unstarted: int = 0


_NONE = Places(0, 1)
_show: Callable[[], Places] = lambda: _NONE  # noqa: E731 - replaced by the pool


def show(places: Callable[[], Places]) -> None:
    """The pool says how to look. Asked from the loop's thread."""
    global _show  # noqa: PLW0603 - a worker process has one pool
    _show = places


def look() -> Places:
    """As it stands."""
    return _show()
