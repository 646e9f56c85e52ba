"""Which models jobs of a shape may get to, and so which rungs they may need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.catalog import UnknownModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.catalog import Catalog, Model

    from ..trip import Shape

__all__ = ["reaches"]


def reaches(catalog: Catalog, has: Callable[[Model], bool]) -> Callable[[Shape], bool]:
    """Whether a job of a shape may get to a model that `has` it. A job's own fallbacks may be any."""
    any_has = any(map(has, catalog.models.values()))

    def may_reach(shape: Shape) -> bool:
        if shape.has_fallbacks and any_has:
            return True
        try:
            return any(map(has, catalog.reach(shape.model)))
        except UnknownModel:
            return False

    return may_reach
