"""Embeddings: the inputs of a request, and vectors on their way from worker to client.

Those are packed 32-bit floats in base64, less than half as long as in digits."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

__all__ = ["MARK", "floats_of", "has_packed", "inputs_of", "numbers_of", "packed", "unpacked"]

MARK: Final = "promptmill_vectors"
"""Stands in a response whose vectors are packed though the job did not ask for that: whoever reads it unpacks them."""


def inputs_of(body: Mapping[str, Any]) -> Sequence[Any]:
    """The inputs, each alone: a text or a list of token ids is one."""
    value = body["input"]
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return value
    return [value]


def floats_of(text: str) -> array[float]:
    """A packed vector. Raises ValueError for what is none."""
    numbers = array("f", b64decode(text, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def packed(numbers: Iterable[float]) -> str:
    """The text that `floats_of` reads."""
    floats = array("f", numbers)
    if sys.byteorder == "big":
        floats.byteswap()
    return b64encode(floats).decode()


def numbers_of(text: str) -> list[float]:
    """Its numbers as a list."""
    return floats_of(text).tolist()


def has_packed(response: dict[str, Any]) -> bool:
    """Whether one of the vectors is packed."""
    rows = response.get("data")
    return isinstance(rows, list) and any(isinstance(row, dict) and _is_packed(row) for row in rows)


def unpacked(response: dict[str, Any]) -> dict[str, Any]:
    """The response with its vectors as lists of numbers. Raises ValueError for a vector that can't be read."""
    plain = {name: value for name, value in response.items() if name != MARK}
    plain["data"] = [
        {**row, "embedding": numbers_of(row["embedding"])} if _is_packed(row) else row for row in response["data"]
    ]
    return plain


def _is_packed(row: dict[str, Any]) -> bool:
    return isinstance(row.get("embedding"), str)
