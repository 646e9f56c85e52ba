"""Seeded chance: the same key gives the same numbers, in whatever order calls arrive and in every process."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from hashlib import blake2b, shake_256
from statistics import NormalDist

__all__ = ["Attempts", "identity", "lognormal", "uniforms"]

_STANDARD_NORMAL = NormalDist()
_EIGHT_WORDS = struct.Struct("<8Q")


def uniforms(seed: int, purpose: str, key: bytes) -> tuple[float, ...]:
    """Eight independent numbers, each strictly between 0 and 1.

    `purpose` keeps two users of one key apart. One hash is ten times cheaper than seeding a `random.Random`.
    """
    digest = blake2b(b"%d:%b:%b" % (seed, purpose.encode(), key), digest_size=64).digest()
    return tuple(((word >> 11) + 0.5) * 2.0**-53 for word in _EIGHT_WORDS.unpack(digest))


def identity(seed: int, content: str) -> str:
    """24 hexadecimal digits for the id of an answer to this."""
    return shake_256(b"%d:%b" % (seed, content.encode())).hexdigest(12)


def lognormal(uniform: float, *, mean: float, spread: float) -> float:
    """A log-normal number with this mean; `spread` is its standard deviation as a share of the mean, 0 = exact."""
    if spread == 0 or mean == 0:
        return mean
    variance = math.log1p(spread * spread)
    return mean * math.exp(math.sqrt(variance) * _STANDARD_NORMAL.inv_cdf(uniform) - variance / 2)


class Attempts:
    """How often each request was admitted so far; the least recently asked are forgotten beyond `kept`."""

    def __init__(self, *, kept: int) -> None:
        self._kept = kept
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def next(self, key: bytes) -> int:
        """The number of this attempt; the first is 0."""
        attempt = self._counts.pop(key, -1) + 1
        self._counts[key] = attempt
        if len(self._counts) > self._kept:
            self._counts.popitem(last=False)
        return attempt

    def clear(self) -> None:
        """Every request's next attempt is its first again."""
        self._counts.clear()
