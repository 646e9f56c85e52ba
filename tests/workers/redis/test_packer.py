"""Our packer's bytes are those of redis-py's own."""

from __future__ import annotations

from typing import Any

import pytest
from redis.connection import HiredisRespSerializer

from workers.redis.packer import PACKER


@pytest.mark.parametrize(
    "command",
    [
        ("EVALSHA", "0f" * 20, 2, "key", "pm:job:é", b"\x00\xff", "", 7, -1.5),
        ("EVALSHA", "0f" * 20, 0),
        ("CLIENT INFO",),
        ("SCRIPT LOAD", "return 1"),
        ("SET", "key", bytearray(b"a buffer")),
        (b"GET", memoryview(b"key")),
    ],
)
def test_commands_are_packed_as_by_redis_py(command: tuple[Any, ...]) -> None:
    assert PACKER.pack(*command) == HiredisRespSerializer().pack(*command)
