"""The keys that a provider's calls may be made with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

from config.api_keys import MissingKey, UnusableKey, read_keys

from ..prompt.failure import Incapable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from config.catalog import Catalog, Provider

__all__ = ["KeyRing"]

logger = logging.getLogger("promptmill.runtime")


class KeyRing:
    """The keys of all providers, read once. The limiter chooses among a provider's: the one that is free first."""

    def __init__(self, keys: Mapping[str, list[SecretStr]], missing: Mapping[str, str] | None = None) -> None:
        """Keys by provider; `missing` says, by provider, what to do about a key that is not there."""
        self._keys = {name: tuple(given) for name, given in keys.items()}
        self._missing = dict(missing or {})
        self._usable = frozenset(keys) - frozenset(self._missing)

    @classmethod
    def read(cls, catalog: Catalog, environ: Mapping[str, str] | None = None) -> Self:
        """Read every provider's keys from the environment.

        A missing, malformed or placeholder key is the problem of that provider's jobs alone: local servers want
        `OPENAI_API_KEY=EMPTY`. Raises `UnusableKey`, with one line for each such key, where no provider can be called.
        """
        keys: dict[str, list[SecretStr]] = {}
        missing: dict[str, str] = {}
        unusable: list[UnusableKey] = []
        for name, provider in catalog.providers.items():
            try:
                keys[name] = read_keys(provider, environ)
            except MissingKey as problem:
                missing[name] = str(problem)
            except UnusableKey as problem:
                missing[name] = str(problem)
                unusable.append(problem)
        if unusable and not keys:
            raise UnusableKey("\n".join(map(str, unusable)), variable=unusable[0].variable)
        for refused in unusable:
            logger.warning("%s Until then its jobs fail with `auth`.", refused)
        return cls(keys, missing)

    @property
    def usable(self) -> frozenset[str]:
        """The providers that can be called: those with a key, and those that need none."""
        return self._usable

    def of(self, provider: Provider) -> tuple[SecretStr, ...]:
        """The provider's keys; none for one that needs none. Raises `Incapable` (`auth`) where they are missing."""
        name = provider.name
        if name in self._missing:
            raise Incapable("auth", self._missing[name])
        return self._keys.get(name, ())
