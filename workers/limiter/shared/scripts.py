"""The limiter's Lua scripts."""

from __future__ import annotations

from pathlib import Path

from tasks.redis.script import Script

__all__ = ["ACQUIRE", "PAUSE"]

_LUA = Path(__file__).with_name("lua")

ACQUIRE = Script.read(_LUA, "acquire")
PAUSE = Script.read(_LUA, "pause")
