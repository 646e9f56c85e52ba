"""What pydantic finds wrong, in our own words."""

from __future__ import annotations

from pydantic_core import ErrorDetails

__all__ = ["text_of"]


def text_of(details: ErrorDetails) -> str:
    """A check of ours as it says it; one of pydantic's with "must", as ours begin."""
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return details["msg"].replace("Input should", "must").replace("String should", "must")
