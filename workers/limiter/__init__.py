"""One limit for all workers: requests wait here until the provider will take them.

A process leases runs of dispatch slots from a schedule in Redis and sends at those instants by its own clock; see
docs/adr/0004-slot-leasing.md. `LimiterRegistry` is what the pipeline holds, `Permit` what it gets. In reading order:

    registry/      all limiters of the process; which key a request goes with
    limiter.py     one limit in this process: who is admitted, and what becomes of those that were sent
    permit.py      the leave to send one request; how that ended: answered, refused by a 429, never sent
    errors.py      why a request is not admitted
    waiting/       who waits, whose turn it is, and how long it will take
    leasing/       the slots that this process has, and how it gets more
    shared/        the schedule in Redis that all processes lease from (lua/)
    heard/         what answers say of limits: how large they are, and when nobody may send
    rate.py        from a provider's limits to the safe pace
    cost.py        what one request takes from the limits
    estimate.py    how many tokens a request will take
    view.py        a limiter from outside: who waits, what is used
    peek.py        how long a request would wait, by what the schedule has written down
"""

from .cost import CallSize, Cost, Forecast
from .errors import NotAdmitted, TooLargeForLimit, TooLate
from .permit import Permit
from .registry import LimiterRegistry
from .view import LimiterView, snapshot
from .waiting.wait_queue import Waiter

__all__ = [
    "CallSize",
    "Cost",
    "Forecast",
    "LimiterRegistry",
    "LimiterView",
    "NotAdmitted",
    "Permit",
    "TooLargeForLimit",
    "TooLate",
    "Waiter",
    "snapshot",
]
