"""The broker's Lua scripts."""

from __future__ import annotations

from pathlib import Path

from tasks.redis.script import Script

__all__ = [
    "ALL",
    "BIND",
    "BURY",
    "CANCEL",
    "DELAY",
    "EXCHANGE",
    "HAND_BACK",
    "HEARTBEAT",
    "OFFER",
    "PURGE",
    "RECLAIM",
    "RETRY_DEAD",
    "SWEEP",
    "VERIFY",
]

_LUA = Path(__file__).with_name("lua")

EXCHANGE = Script.read(_LUA, "exchange")
HEARTBEAT = Script.read(_LUA, "heartbeat")
HAND_BACK = Script.read(_LUA, "hand_back")
DELAY = Script.read(_LUA, "delay")
BURY = Script.read(_LUA, "bury")
BIND = Script.read(_LUA, "bind")
CANCEL = Script.read(_LUA, "cancel")
OFFER = Script.read(_LUA, "offer")
PURGE = Script.read(_LUA, "purge")
SWEEP = Script.read(_LUA, "sweep")
RETRY_DEAD = Script.read(_LUA, "retry_dead")
VERIFY = Script.read(_LUA, "verify")
RECLAIM = Script.read(_LUA, "reclaim")

ALL = (EXCHANGE, HEARTBEAT, HAND_BACK, DELAY, BURY, CANCEL, OFFER, PURGE, RECLAIM, SWEEP, VERIFY)
"""Those that the broker's links load (link.py)."""
