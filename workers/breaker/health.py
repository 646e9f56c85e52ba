"""The health of a route: one provider's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .window import BreakerPolicy, Window

if TYPE_CHECKING:
    from ..prompt.failure import Failure
    from .breakers import Breakers
    from .outage import Outage, Probe, Reason

__all__ = ["Health", "Target"]


class Target(NamedTuple):
    """Whose health: a model of a provider, by the provider's own name of it."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class Health:
    """What calls count, and the outages that hold the route's jobs back. For one event loop.

    While all is well, a call reads `outages` twice and adds 1 to `answered`; nothing else happens.
    """

    __slots__ = (
        "__weakref__",
        "_breakers",
        "address",
        "answered",
        "last_failure",
        "outages",
        "target",
        "watched_until",
        "window",
    )

    def __init__(self, target: Target, address: str, breakers: Breakers, policy: BreakerPolicy) -> None:
        """`address`: the provider's host, for people."""
        self.target = target
        self.address = address
        self.answered = 0
        """How many calls were answered so far."""
        self.outages: tuple[Outage, ...] = ()
        """Those that last, the provider's before the model's."""
        self.last_failure: Reason | None = None
        """Of those that may be an outage."""
        self.window = Window(policy)
        self.watched_until = 0.0
        """Until then answers are reported: another process has met failures."""
        self._breakers = breakers

    def lets(self, probe: Probe) -> bool:
        """Whether this job may call although there are outages: it tries for all of them."""
        return self._breakers.lets(self, probe)

    async def claim(self, probe: Probe) -> Outage | None:
        """Have this job try for all outages. The one that it has to wait for; None: it may call."""
        return await self._breakers.claim(self, probe)

    def release(self, probe: Probe) -> None:
        """The job that tried says nothing more."""
        for outage in self.outages:
            outage.release(probe)

    def note_answer(self, *, began_at: float) -> None:
        """A call that began then was answered while there were outages."""
        self._breakers.note_answer(self, began_at=began_at)

    def note_failure(self, failure: Failure, *, job_id: str, probe: Probe, began_at: float) -> None:
        """A call that began then has failed."""
        self._breakers.note_failure(self, failure, job_id=job_id, probe=probe, began_at=began_at)

    async def judged(self) -> None:
        """Wait until Redis has judged the failures so far, a second at most."""
        await self._breakers.judged(self)
