"""The wire formats that a provider may speak, and a catalogue's table for each."""

from __future__ import annotations

from typing import Any, cast

from workers.simulator.dialects import DIALECTS

__all__ = ["CLASSIC", "WIRES", "dialect_of", "provider_at"]

CLASSIC = "azure-classic"
WIRES = [*DIALECTS, CLASSIC]
"""The dialects, and Azure's older form of address."""


def dialect_of(wire: str) -> Any:
    return cast("dict[str, Any]", DIALECTS)["azure" if wire == CLASSIC else wire]


def provider_at(simulator: Any, wire: str, **fields: Any) -> dict[str, Any]:
    """The provider's table of the catalogue."""
    table = {"kind": dialect_of(wire).kind, "base_url": simulator.url, **fields}
    if wire == CLASSIC:
        table |= {"base_url": simulator.url.removesuffix("/openai/v1"), "query": {"api-version": "2024-10-21"}}
    return table
