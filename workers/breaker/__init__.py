"""Whether a provider works, as all workers know it: one breaker for each provider and upstream model.

health.py     a route's health: what a call counts, and the outages that hold its jobs back. Start here
outage.py     an outage of either origin: when to try again, and which job tries
breakers.py   all of a process: what its calls have met, and which jobs may call all the same
known.py      the outages that a process knows of, and the routes that they hold back
fleet.py      what a process reports to Redis, and what it hears
window.py     the recent calls of one process, and whether they are an outage
blame.py      which failures are the provider's
shared.py     what is said to the breakers in Redis, and what they answer
news.py       what people read of it
view.py       the breakers as they stand, for `promptmill limits` and `promptmill metrics`
"""

from __future__ import annotations

from .blame import blames_provider
from .breakers import Breakers
from .health import Health
from .outage import Outage, Reason
from .shared import SharedBreakers
from .view import BreakerView, look
from .window import BreakerPolicy

__all__ = [
    "BreakerPolicy",
    "BreakerView",
    "Breakers",
    "Health",
    "Outage",
    "Reason",
    "SharedBreakers",
    "blames_provider",
    "look",
]
