"""Whether a provider works, as all workers know it: one breaker for each provider and upstream model.

health.py     a route's health: what a call counts, and the outages that hold its jobs back. Start here
outage.py     an outage of either origin: when to try again, and which job tries
breakers.py   all of a process: what calls have met, what Redis decides of it, and what is pushed
window.py     the recent calls of one process, and whether they are an outage
blame.py      which failures are the provider's
shared.py     what is said to the breakers in Redis, and what they answer
news.py       what people read of it
view.py       the breakers as they stand, for `promptmill limits` and `promptmill metrics`
"""

from __future__ import annotations

from .blame import blames_provider
from .breakers import BreakerPolicy, Breakers
from .health import Health
from .outage import Outage, Reason
from .shared import SharedBreakers
from .view import BreakerView, look

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
