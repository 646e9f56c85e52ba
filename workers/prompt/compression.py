"""Whether a large record is stored compressed, and as what. No I/O."""

from __future__ import annotations

import zlib

__all__ = ["LEVEL", "TRIAL_BYTES", "WORTH_IT", "compressed"]

TRIAL_BYTES = 64 * 1024
WORTH_IT = 0.7
"""A record of which the first part does not shrink so far is stored as it is. Random base64 shrinks to 0.77, at 46 ms a
MB; vectors in text to 0.49, at 20 ms."""

LEVEL = 1
"""1.1 ms for 100 KB of vectors or of text, to 0.43 and 0.40 of their size; zlib's default takes five times as long to
get to 0.38 and 0.34."""


def compressed(record: bytes) -> bytes | None:
    """The record in zlib's format; None if that makes it smaller by less than a third."""
    if len(record) > TRIAL_BYTES and len(zlib.compress(record[:TRIAL_BYTES], LEVEL)) > WORTH_IT * TRIAL_BYTES:
        return None
    return zlib.compress(record, LEVEL)
