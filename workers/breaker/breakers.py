"""All outages that one process knows: what its calls have met, what Redis decides of it, and what is pushed."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from redis.exceptions import RedisError, ResponseError

from tasks.redis.cancellation import stop

from .blame import blames_provider, shows_life
from .health import Health, Target
from .news import tell_began, tell_over
from .outage import FORGET_S, Outage, Reason
from .shared import read_state
from .window import BreakerPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from ..prompt.failure import Failure
    from .outage import Probe
    from .shared import SharedBreakers, State

__all__ = ["BreakerPolicy", "Breakers"]

logger = logging.getLogger("promptmill.breaker")

REPORT_GAP_S = 0.1
"""Between two reports of one model's calls."""

TICK_S = 0.5
ANSWER_WITHIN_S = 1.0
"""How long anybody waits for Redis's word."""

_AWAY = (RedisError, OSError, TimeoutError)


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
        self._shared = shared
        self._hears = hears
        self._healths: WeakValueDictionary[Target, Health] = WeakValueDictionary()
        self._outages: dict[Target, Outage] = {}
        self._reports: dict[Target, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._keep_ticking())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._ticking, *self._reports.values(), *self._tasks):
            if task is not None:
                await stop(task)
        if self._shared is not None:
            await self._shared.close()

    @property
    def outages(self) -> tuple[Outage, ...]:
        """All that last."""
        return tuple(self._outages.values())

    def health(self, provider: str, model: str, *, address: str = "") -> Health:
        """That of a provider's model, by the provider's own name; `address` is the provider's host."""
        target = Target(provider, model)
        if (health := self._healths.get(target)) is None:
            health = self._healths[target] = Health(target, address, self, self._policy)
            self._refresh(health)
        return health

    # ---- for the jobs

    def lets(self, health: Health, probe: Probe) -> bool:
        """See `Health.lets`."""
        now = self._now()
        return all(outage.holds(probe, now) for outage in health.outages)

    async def claim(self, health: Health, probe: Probe) -> Outage | None:
        """See `Health.claim`."""
        while outages := health.outages:
            for outage in outages:
                if outage.is_over:
                    self._end(_key_of(health, outage), outage)
                    break
                if not outage.holds(probe, self._now()) and not await outage.claim(probe, self._now()):
                    if outage in health.outages:
                        health.release(probe)
                        return outage
                    break  # Redis knew already that it is over
            else:
                return None
        return None

    def note_answer(self, health: Health, *, began_at: float) -> None:
        """See `Health.note_answer`."""
        for outage in health.outages:
            if began_at >= outage.failed_at:
                self._end(_key_of(health, outage), outage)
                if outage.fleet is not None:
                    self._spawn(self._settle(health.target, "works"))

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
        if (report := self._reports.get(health.target)) is not None:
            await asyncio.wait((report,), timeout=ANSWER_WITHIN_S)

    def _note_unreachable(self, health: Health, reason: Reason, *, began_at: float) -> None:
        now, key = self._now(), Target(health.target.provider, "")
        outage = self._outages.get(key)
        if outage is None or now > outage.until + FORGET_S:
            outage = Outage.unreachable(reason, now=now)
            self._begin(key, outage)
        elif began_at < outage.until:
            return  # it was under way when the pause began
        else:
            outage.fail_again(reason, now)
        tell_began(health, outage)

    def _note_reached(self, health: Health, *, began_at: float) -> None:
        for outage in health.outages:
            if outage.kind == "unreachable" and began_at >= outage.failed_at:
                self._end(_key_of(health, outage), outage)

    def _note_failing(self, health: Health, reason: Reason, *, job_id: str, probe: Probe) -> None:
        now = self._now()
        outage = self._outages.get(health.target)
        if outage is not None:
            # What was under way when it began says nothing new.
            if outage.holds(probe, now):
                outage.fail_again(reason, now)
                tell_began(health, outage)
                if outage.fleet is not None:
                    self._spawn(self._settle(health.target, "fails", reason))
            return
        if self._policy.failures:
            health.window.fail(job_id, now, has_status=reason.http_status is not None)
            self._report_soon(health, reason)

    # ---- the fleet

    async def fleet_claim(self, target: Target, outage: Outage) -> bool:
        """Whether this process's job is the one of all workers that tries; while Redis is away, it is."""
        if self._shared is None:
            return True
        try:
            state = await self._shared.claim(target)
        except _AWAY as error:
            _log_if_refused(error)
            return True
        self._take(target, state)
        if state is not None and not state.is_ours:
            now = self._now()
            outage.probing_until = now + max(state.probing_s, TICK_S) if state.left_s <= 0 else 0.0
        return state is not None and state.is_ours and self._outages.get(target) is outage

    def fleet_release(self, target: Target) -> None:
        self._spawn(self._settle(target, "released"))

    def hear(self, said: str) -> None:
        """What was published. Raises ValueError for what no worker of ours says."""
        told = json.loads(said)
        if isinstance(told, dict) and "watch" in told:
            self._watch(Target(*json.loads(told["watch"])))
            return
        state = read_state(said)
        self._take(state.target, state)

    def hear_again(self) -> None:
        """Something may have been missed."""
        self._spawn(self._read_all())

    def _take(self, target: Target, state: State | None) -> None:
        """What Redis says of a breaker, None: it is closed; older news than what is known changes nothing."""
        known = self._outages.get(target)
        if state is None or not state.is_open or state.reason is None:
            if known is not None and known.fleet is not None and (state is None or state.epoch >= known.epoch):
                self._end(target, known)
            return
        if known is not None and known.fleet is not None and known.epoch >= state.epoch:
            return
        now = self._now()
        if known is None or known.fleet is None:
            known = Outage("open", now - state.open_for_s, now, state.pause_s, state.reason, fleet=_Fleet(self, target))
            self._begin(target, known)
            is_news = True
        else:
            is_news = known.pause_s != state.pause_s
        known.epoch, known.reason, known.pause_s = state.epoch, state.reason, state.pause_s
        known.failed_at = now + state.left_s - state.pause_s
        if known.probe is None:
            known.probing_until = now + state.probing_s if state.probing_s and not state.is_ours else 0.0
        if is_news and (health := self._healths.get(target)) is not None:
            tell_began(health, known)

    def _watch(self, target: Target) -> None:
        if (health := self._healths.get(target)) is not None:
            health.watched_until = self._now() + self._policy.window_s
            self._roll(health)

    def _report_soon(self, health: Health, reason: Reason | None) -> None:
        report = self._reports.get(health.target)
        if report is None or report.done():
            self._reports[health.target] = asyncio.create_task(self._report(health, reason))

    async def _report(self, health: Health, reason: Reason | None) -> None:
        window = health.window
        while window.has_failures_to_say or window.has_answers_to_say:
            window.roll(health.answered, self._now())
            failing, answered = window.take_failing(), window.take_answered(self._now())
            state = None
            if self._shared is not None:
                try:
                    state = await self._shared.report(health.target, failing=failing, answered=answered, reason=reason)
                except _AWAY as error:
                    _log_if_refused(error)
            if state is not None:
                self._take(health.target, state)
                break
            if failing and health.target not in self._outages and window.is_outage(self._now()) and reason is not None:
                now = self._now()
                alone = Outage("failing", now, now, self._policy.open_s, reason)
                self._begin(health.target, alone)
                tell_began(health, alone)
                break
            if not window.has_failures_to_say:
                break
            await asyncio.sleep(REPORT_GAP_S)
        self._reports.pop(health.target, None)

    async def _settle(self, target: Target, outcome: str, reason: Reason | None = None) -> None:
        if self._shared is None:
            return
        try:
            self._take(target, await self._shared.settle(target, outcome, reason))
        except _AWAY as error:  # the end of the probe's claim says it later
            _log_if_refused(error)

    async def _read_all(self) -> None:
        if self._shared is None:
            return
        try:
            read_at, states = await self._shared.read()
        except _AWAY as error:
            _log_if_refused(error)
            return
        for target, state in states.items():
            self._take(target, state)
        for target, outage in list(self._outages.items()):
            if outage.fleet is not None and target not in states and outage.epoch < read_at * 1000:
                self._end(target, outage)

    async def _keep_ticking(self) -> None:
        """Count answers by time, tell those that others wait for, and read what is not pushed."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                for health in list(self._healths.values()):
                    self._roll(health)
                if not self._hears():
                    await self._read_all()
            except Exception:  # a fault of ours must not leave the process blind for good, unseen
                logger.exception("A fault of ours in the breakers' turn; it goes on")

    def _roll(self, health: Health) -> None:
        health.window.roll(health.answered, self._now())
        if health.window.has_answers_to_say and health.watched_until > self._now():
            self._report_soon(health, None)

    # ---- what lasts

    def _begin(self, key: Target, outage: Outage) -> None:
        self._outages[key] = outage
        self._refresh_all(key.provider)

    def _end(self, key: Target, outage: Outage) -> None:
        if self._outages.get(key) is outage:
            del self._outages[key]
            self._refresh_all(key.provider)
            tell_over(key, outage, after_s=self._now() - outage.since)

    def _refresh_all(self, provider: str) -> None:
        for health in list(self._healths.values()):
            if health.target.provider == provider:
                self._refresh(health)

    def _refresh(self, health: Health) -> None:
        keys = Target(health.target.provider, ""), health.target
        outages = tuple(outage for key in keys if (outage := self._outages.get(key)) is not None)
        if bool(outages) != bool(health.outages):
            health.window.clear()
        health.outages = outages

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Fleet:
    """The claim of a probe, for the outage of one target."""

    def __init__(self, breakers: Breakers, target: Target) -> None:
        self._breakers = breakers
        self._target = target

    async def claim(self, outage: Outage) -> bool:
        return await self._breakers.fleet_claim(self._target, outage)

    def give_up(self, outage: Outage) -> None:
        self._breakers.fleet_release(self._target)


def _log_if_refused(error: Exception) -> None:
    """A Redis that is away needs no word of ours; one that refuses a script does."""
    if isinstance(error, ResponseError):
        logger.warning("Redis refused what the breaker said: %s", error)


def _key_of(health: Health, outage: Outage) -> Target:
    return Target(health.target.provider, "") if outage.kind == "unreachable" else health.target
