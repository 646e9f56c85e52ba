"""Commands as bytes, for the connections that carry every job's messages and results."""

from __future__ import annotations

from typing import Any, Final

import hiredis
from redis.connection import HiredisRespSerializer

__all__ = ["PACKER"]


class Packer(HiredisRespSerializer):
    """As redis-py's, which looks at each argument for buffers (`bytearray`, `memoryview`): scripts get none of ours."""

    def pack(self, *args: Any) -> list[bytes]:
        if args[0] == "EVALSHA":
            return [hiredis.pack_command(args)]
        packed: list[bytes] = super().pack(*args)
        return packed


PACKER: Final = Packer()
"""It has no state."""
