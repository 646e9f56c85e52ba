"""One limit for all workers: requests wait here until the provider will take them.

A process leases runs of dispatch slots from a schedule in Redis and sends at those instants by its own clock; see
docs/adr/0004-slot-leasing.md. `LimiterRegistry` is what the pipeline holds, `Permit` what it gets. In reading order:

    registry.py      all limiters of the process; which key a request goes with
    limiter.py       one limit in this process: who is admitted, and what becomes of those that were sent
    permit.py        the leave to send one request now
    errors.py        why a request is not admitted
    wait_queue.py    who waits, and whose turn it is
    dispatch.py      who is sent when a slot is due
    forecast.py      how long a request would wait, and whether that is too long
    free_flow.py     who goes at once, where no limit is known
    leases.py        what is leased: when it asks for more slots, what it reports, what it hears
    slots.py         the slots that are out, and the timer of the first
    settlements.py   what is settled, and has yet to be reported
    learned.py       limits that answers have stated
    pauses.py        since which 429, and until when, nobody may send
    caller.py        one call to the schedule at a time, and again what had no answer
    outage.py        what goes on while Redis is away
    degraded.py      slots without Redis: a share of the last known pace
    clock.py         Redis's time on the monotonic clock
    schedule.py      what is said to the schedule in Redis, and what it answers
    link.py          script calls of one turn of the loop travel together
    scripts.py       the Lua scripts: acquire.lua and pause.lua, each with the files that it includes
    channel.py       hearing of pauses as they begin
    rate.py          from a provider's limits to the safe pace
    headers.py       what rate headers state of limits
    cost.py          what one request takes from the limits
    estimate.py      how many tokens a request will take
    view.py          a limiter from outside: who waits, what is used
    peek.py          how long a request would wait, by what the schedule has written down
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
