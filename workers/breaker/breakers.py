"""All outages that one process knows: what its calls have met, and which of its jobs may call all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .blame import blames_provider, shows_life
from .fleet import Fleet
from .health import Health, Target
from .known import Known, whole
from .news import tell_began
from .outage import FORGET_S, Outage, Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from ..prompt.failure import Failure
    from .outage import Probe
    from .shared import SharedBreakers
    from .window import BreakerPolicy

__all__ = ["Breakers"]


class Breakers:
    """Belongs to one event loop. Without `shared`, each process is alone; so it is while Redis is away."""

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        now: Callable[[], float],
        shared: SharedBreakers | None = None,
        hears: Callable[[], bool] = lambda: True,
    ) -> None:
        """`now` gives epoch seconds. `hears`: whether changes are pushed to this process at the moment."""
        self._policy = policy
        self._now = now
        self._known = Known(policy, now=now)
        self._fleet = Fleet(self._known, policy, now=now, shared=shared, hears=hears)

    async def __aenter__(self) -> Self:
        self._fleet.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._fleet.close()

    @property
    def outages(self) -> list[Outage]:
        """All that last."""
        return [outage for _, outage in self._known.outages()]

    def health(self, provider: str, model: str, *, address: str = "") -> Health:
        """That of a provider's model, by the provider's own name; `address` is the provider's host."""
        return self._known.health(Target(provider, model), address, self)

    def hear(self, said: str) -> None:
        """What was published. Raises ValueError for what no worker of ours says."""
        self._fleet.hear(said)

    def hear_again(self) -> None:
        """Something may have been missed."""
        self._fleet.hear_again()

    def lets(self, health: Health, probe: Probe) -> bool:
        """See `Health.lets`."""
        now = self._now()
        return all(outage.holds(probe, now) for outage in health.outages)

    async def claim(self, health: Health, probe: Probe) -> Outage | None:
        """See `Health.claim`."""
        while health.outages:
            blocking = await self._claim_each(health, probe)
            if blocking is None:
                return None
            if blocking.is_over:
                self._end(health, blocking)
            elif blocking in health.outages:  # or Redis knew already that it is over
                health.release(probe)
                return blocking
        return None

    async def _claim_each(self, health: Health, probe: Probe) -> Outage | None:
        """The first outage that this job may not try."""
        for outage in health.outages:
            now = self._now()
            if not outage.holds(probe, now) and not await outage.claim(probe, now):
                return outage
        return None

    def note_answer(self, health: Health, *, began_at: float) -> None:
        """See `Health.note_answer`."""
        for outage in health.outages:
            if began_at >= outage.failed_at:
                self._end(health, outage)
                if outage.fleet is not None:
                    self._fleet.settle_soon(health.target, "works")

    def note_failure(self, health: Health, failure: Failure, *, job_id: str, probe: Probe, began_at: float) -> None:
        """See `Health.note_failure`."""
        reason = Reason(failure.code, failure.message, failure.http_status, failure.unreachable)
        if failure.unreachable:
            self._note_unreachable(health, reason, began_at=began_at)
            return
        self._note_reached(health, began_at=began_at)
        if blames_provider(failure):
            self._note_failing(health, reason, job_id=job_id, probe=probe)
        elif shows_life(failure):
            self.note_answer(health, began_at=began_at)

    async def judged(self, health: Health) -> None:
        """See `Health.judged`."""
        await self._fleet.judged(health)

    def _note_unreachable(self, health: Health, reason: Reason, *, began_at: float) -> None:
        now, target = self._now(), whole(health.target)
        outage = self._known.outage(target)
        if outage is None or now > outage.until + FORGET_S:
            outage = Outage.unreachable(reason, now=now)
            self._known.begin(target, outage)
        elif began_at < outage.until:
            return  # it was under way when the pause began
        else:
            outage.fail_again(reason, now)
        tell_began(health, outage)

    def _note_reached(self, health: Health, *, began_at: float) -> None:
        for outage in health.outages:
            if outage.kind == "unreachable" and began_at >= outage.failed_at:
                self._end(health, outage)

    def _note_failing(self, health: Health, reason: Reason, *, job_id: str, probe: Probe) -> None:
        now = self._now()
        outage = self._known.outage(health.target)
        if outage is not None and outage.holds(probe, now):
            outage.fail_again(reason, now)
            tell_began(health, outage)
            if outage.fleet is not None:
                self._fleet.settle_soon(health.target, "fails", reason)
        # What was under way when all workers' breaker opened says nothing new.
        if self._policy.failures and (outage is None or outage.fleet is None):
            health.window.fail(job_id, now, has_status=reason.http_status is not None)
            if outage is None and health.window.is_outage(now):
                self._stop_alone(health, reason, now)
            health.last_failure = reason
            self._fleet.report_soon(health)

    def _stop_alone(self, health: Health, reason: Reason, now: float) -> None:
        """This process stops at once, whatever Redis says of the others."""
        unsaid = health.window.take_failing()
        outage = Outage("failing", now, now, self._policy.open_s, reason)
        self._known.begin(health.target, outage)
        health.window.say_again(unsaid)
        tell_began(health, outage)

    def _end(self, health: Health, outage: Outage) -> None:
        self._known.end(whole(health.target) if outage.kind == "unreachable" else health.target, outage)
