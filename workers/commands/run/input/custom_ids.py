"""Which custom ids a file has used already."""

from __future__ import annotations

from array import array
from hashlib import blake2b

__all__ = ["CustomIds"]


class CustomIds:
    """A set of texts that costs 16 to 32 bytes for each, where a `set` of Python texts costs 150.

    It keeps 64-bit digests in an open-addressing table, so two different ids among a million are taken for the
    same with a chance of 1 in 30 million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def add(self, custom_id: str) -> bool:
        """Remember an id. False if it was there already."""
        if 2 * self._used >= len(self._slots):
            self._grow()
        if not _insert(self._slots, _digest(custom_id)):
            return False
        self._used += 1
        return True

    def _grow(self) -> None:
        larger = array("Q", bytes(16 * len(self._slots)))
        for digest in filter(None, self._slots):
            _insert(larger, digest)
        self._slots = larger


def _digest(text: str) -> int:
    # "surrogatepass": an id with a lone surrogate is refused later, by its row's own check.
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def _insert(slots: array[int], digest: int) -> bool:
    mask = len(slots) - 1
    at = digest & mask
    while slots[at]:
        if slots[at] == digest:
            return False
        at = (at + 1) & mask
    slots[at] = digest
    return True
