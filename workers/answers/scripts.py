"""The Lua scripts of the answers."""

from __future__ import annotations

from pathlib import Path

from tasks.redis.script import Script

__all__ = ["CLEAR", "LAND", "LOOK", "RENEW"]

_LUA = Path(__file__).with_name("lua")

LOOK = Script.read(_LUA, "look")
LAND = Script.read(_LUA, "land")
RENEW = Script.read(_LUA, "renew")
CLEAR = Script.read(_LUA, "clear")
