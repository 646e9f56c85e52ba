"""`--base-url`: a server that no catalogue names, and a catalogue that sends everything to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from config.catalog import Catalog, load_catalog
from tasks.wire.kinds import KINDS

from ..errors import UnusableInput
from .toml import table

__all__ = ["OwnServer"]

PROVIDER = "server"
"""Its name in results: `answered_by` is `server/MODEL`."""

APIS = [kind.api for kind in KINDS.values()]
"""The server itself says which it lacks."""


@dataclass(frozen=True, slots=True)
class OwnServer:
    """An OpenAI-compatible server. `key_variable`: the environment variable that holds its key; None: it wants none."""

    base_url: str
    key_variable: str | None = None

    def catalog(self) -> Catalog:
        """The server as the one provider, which takes any model. Raises `UnusableInput`."""
        try:
            return Catalog.model_validate({"providers": {PROVIDER: self._provider()}})
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)[0]
            option = "--api-key-env" if "api_keys" in details["loc"] else "--base-url"
            raise UnusableInput(f"{option}: {details['msg'].removeprefix('Value error, ')}.") from None

    def catalog_text(self) -> str:
        """The same for a worker's file, which overrides the presets: their names too are the server's own."""
        aliases = load_catalog().models
        tables = [table("providers", PROVIDER, self._provider())]
        tables += [table("models", alias, {"provider": PROVIDER, "upstream": alias}) for alias in aliases]
        return "\n".join(tables)

    def _provider(self) -> dict[str, Any]:
        keys = [] if self.key_variable is None else [self.key_variable]
        return {"base_url": self.base_url, "api_keys": keys, "any_model": True, "apis": APIS}
