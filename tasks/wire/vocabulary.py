"""The words that stand in Redis, each once for Python and Lua: states, priorities.

`tasks/redis/script.py` gives them to Lua scripts under their names in capitals. Pure: the standard library alone.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = [
    "CELERY_COMPRESSED",
    "CELERY_ENDS",
    "FLEX",
    "OPEN_STATES",
    "PRIORITIES",
    "STATUSES",
    "TOO_LONG",
    "TRIGGERS",
    "OpenState",
    "Priority",
    "Status",
    "Tier",
    "TooLong",
    "Trigger",
]

OpenState = Literal["queued", "running"]
"""The state in the record of a job that has not ended."""
OPEN_STATES: Final[tuple[OpenState, ...]] = get_args(OpenState)

Status = Literal["succeeded", "failed", "cancelled", "expired"]
"""How a job ended: in its result, in its record, and as the name of its group's counter."""
STATUSES: Final[tuple[Status, ...]] = get_args(Status)

Priority = Literal["interactive", "normal", "bulk"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)
"""Most urgent first."""

Tier = Literal["standard", "flex", "priority", "other"]
"""How a call was served: at once, when the provider has room for less, before others for more, or by a tier of which
only the name is known."""
FLEX: Final = "flex"
"""The tier's name, in a request's `service_tier` too."""

Trigger = Literal["rate_limited", "content_filter", "auth", "permission"]
"""Error codes that lead to a job's next model only where `fallback_on` names them."""
TRIGGERS: Final[tuple[Trigger, ...]] = get_args(Trigger)

TooLong = Literal["reject", "truncate", "split"]
TOO_LONG: Final[tuple[TooLong, ...]] = get_args(TooLong)
"""What becomes of inputs that are longer than the model takes."""

CELERY_ENDS: Final = ("SUCCESS", "FAILURE", "REVOKED")
"""The `status` of a Celery result record that is a job's end (celery/states.py)."""

CELERY_COMPRESSED: Final = "\0celery-compressed\0"
"""Celery's mark of a compressed record (from 5.7; celery/backends/base.py), before the method's name and a NUL."""
