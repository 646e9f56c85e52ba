"""One limit for all workers: requests wait here until the provider will take them.

A process leases runs of dispatch slots from a schedule in Redis and sends at those instants by its own clock; see
docs/adr/0004-slot-leasing.md. `LimiterRegistry` is what the pipeline holds, `Permit` what it gets.

    registry.py    all limiters of the process; which key
    limiter.py     one limit in this process, and what of it is said to Redis
    line.py        whose turn it is
    dispatch.py    who is sent when a slot (slots.py) is due
    forecast.py    how long a request would wait, and whether that is too long
    caller.py      the one conversation with the schedule
    schedule.py    the schedule in Redis: acquire.lua, calendar.lua, window.lua, pause.lua
    rate.py        from a provider's limits to the safe pace
    told.py        limits that answers have told (headers.py)
"""

from .cost import Cost
from .errors import NotAdmitted, TooLargeForLimit, TooLate
from .permit import Permit
from .registry import LimiterRegistry, snapshot
from .view import LimiterView

__all__ = [
    "Cost",
    "LimiterRegistry",
    "LimiterView",
    "NotAdmitted",
    "Permit",
    "TooLargeForLimit",
    "TooLate",
    "snapshot",
]
