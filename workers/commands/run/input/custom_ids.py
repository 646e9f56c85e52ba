"""Which custom ids a file has used already, and what belongs to them, in little memory.

Both tables keep 64-bit digests of the ids in an open-addressing table, so two different ids among a million are taken
for the same with a chance of 1 in 30 million.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

__all__ = ["CustomIds", "DigestsById"]

SLOTS = 1024


class CustomIds:
    """A set of texts that costs 16 to 32 bytes for each, where a `set` of Python texts costs 150."""

    def __init__(self) -> None:
        self._slots = _zeros(SLOTS)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def add(self, custom_id: str) -> bool:
        """Remember an id. False if it was there already."""
        if 2 * self._used >= len(self._slots):
            self._grow()
        digest = _digest(custom_id)
        at = _place(self._slots, digest)
        if self._slots[at]:
            return False
        self._slots[at] = digest
        self._used += 1
        return True

    def _grow(self) -> None:
        larger = _zeros(2 * len(self._slots))
        for digest in filter(None, self._slots):
            larger[_place(larger, digest)] = digest
        self._slots = larger


class DigestsById:
    """A dict from a text to a 64-bit number that is not 0, at 32 to 64 bytes for each."""

    def __init__(self) -> None:
        self._ids = _zeros(SLOTS)
        self._values = _zeros(SLOTS)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def get(self, custom_id: str) -> int:
        """The number of this id; 0 if there is none."""
        return self._values[_place(self._ids, _digest(custom_id))]

    def add(self, custom_id: str, value: int) -> bool:
        """Remember an id's number. False, and no change, if the id was there already."""
        if 2 * self._used >= len(self._ids):
            self._grow()
        digest = _digest(custom_id)
        at = _place(self._ids, digest)
        if self._ids[at]:
            return False
        self._ids[at], self._values[at] = digest, value
        self._used += 1
        return True

    def _grow(self) -> None:
        ids, values = _zeros(2 * len(self._ids)), _zeros(2 * len(self._ids))
        for digest, value in zip(self._ids, self._values, strict=True):
            if digest:
                at = _place(ids, digest)
                ids[at], values[at] = digest, value
        self._ids, self._values = ids, values


def _zeros(count: int) -> array[int]:
    return array("Q", bytes(8 * count))


def _digest(text: str) -> int:
    # "surrogatepass": an id with a lone surrogate is refused later, by its row's own check.
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def _place(slots: array[int], digest: int) -> int:
    """Where the digest is, or would go."""
    mask = len(slots) - 1
    at = digest & mask
    while slots[at] and slots[at] != digest:
        at = (at + 1) & mask
    return at
