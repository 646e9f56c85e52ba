"""Further points of a table, which take seconds each: `make check` tries one of them, `make test` all."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["thorough"]


def thorough(*values: Any) -> Any:
    """A case for `pytest.mark.parametrize` that `make check` leaves out."""
    return pytest.param(*values, marks=pytest.mark.thorough)
