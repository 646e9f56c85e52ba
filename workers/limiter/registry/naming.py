"""Under which name a model's limiters go: its own, or one that unnamed models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rate import plan

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from config.catalog import Limits, Model

__all__ = ["SHARED", "Naming"]

SHARED = "*"
"""In place of the model, in the name of the limiter that unnamed models share."""

MOST_UNNAMED = 1_024
"""Of so many unnamed models it is remembered that they have limits."""


class Naming:
    """Knows which models have limiters of their own.

    `named`: the names of the catalogue's models; None: all are named. `organisations`: by provider, limits that all its
    keys together have for each of its models that states none.
    """

    def __init__(self, named: Collection[str] | None, organisations: Mapping[str, Limits]) -> None:
        self._named = named
        self._organisations = dict(organisations)
        self._has_limits: dict[tuple[str, str], None] = {}

    def known_as(self, model: Model) -> tuple[str, str]:
        """Provider and model of its limiters."""
        name = (model.provider, model.upstream)
        if self._is_named(model) or name in self._has_limits:
            return name
        is_free = plan(model.limits, organisation=self.organisation(model)).is_free
        return (model.provider, SHARED) if is_free else name

    def is_shared(self, model: Model) -> bool:
        """Whether its limiter is one that unnamed models share."""
        return not self._is_named(model) and self.known_as(model)[1] == SHARED

    def note_limits(self, provider: str, upstream: str) -> None:
        """A model turns out to have limits, and so a limiter of its own from now on."""
        if self._named is None:
            return
        name = (provider, upstream)
        self._has_limits.pop(name, None)
        self._has_limits[name] = None
        if len(self._has_limits) > MOST_UNNAMED:
            del self._has_limits[next(iter(self._has_limits))]

    def organisation(self, model: Model) -> Limits | None:
        """The limits that stand above the model's keys."""
        return model.organisation_limits or self._organisations.get(model.provider)

    def _is_named(self, model: Model) -> bool:
        return self._named is None or model.name in self._named
