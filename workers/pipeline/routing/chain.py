"""The models that a job may be answered by, in the order in which they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Chain"]


@dataclass(slots=True)
class Chain:
    """The names of the models, and which of them is being tried, from 0.

    `chosen` says why the first is the first, where a route chose it: {"name", "rule", "why"}. `rule` is its number in
    the catalogue, from 1; None where no rule decided.
    """

    names: list[str]
    position: int = 0
    chosen: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The model that is being tried."""
        return self.names[self.position]

    @property
    def untried(self) -> list[str]:
        """The models after it."""
        return self.names[self.position + 1 :]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `dataclasses.asdict` made of one. Raises KeyError, TypeError or ValueError for anything else."""
        chain = cls([str(name) for name in data["names"]], int(data["position"]), data["chosen"])
        if not 0 <= chain.position < len(chain.names):
            raise ValueError("a chain that has come to its end")
        return chain
