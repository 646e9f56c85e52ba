"""One process's part in the breakers of all: what it reports, and what it hears."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import ResponseError

from tasks.redis.cancellation import stop

from ..redis.link import AWAY
from .health import Target
from .news import tell_began
from .outage import Outage
from .shared import State, read_state
from .window import LEAST_SPAN_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from .health import Health
    from .known import Known
    from .outage import Reason
    from .shared import SharedBreakers
    from .window import BreakerPolicy

__all__ = ["Fleet"]

logger = logging.getLogger("promptmill.breaker")

REPORT_GAP_S = 0.1
"""Between two reports of one model's calls."""

JUDGE_AGAIN_S = 0.5
JUDGE_FOR_S = LEAST_SPAN_S + 1.0
"""How often, and for how long, a process that has stopped alone asks whether all are to stop."""

TICK_S = 0.5
"""How often answers are counted by time, and how often a process reads what is not pushed to it."""

JUDGED_WITHIN_S = 1.0
"""How long a job waits for Redis's word on its failure."""


class Fleet:
    """Belongs to one event loop. Without `shared` the process is alone; so it is while Redis is away."""

    def __init__(
        self,
        known: Known,
        policy: BreakerPolicy,
        *,
        now: Callable[[], float],
        shared: SharedBreakers | None,
        hears: Callable[[], bool],
    ) -> None:
        """`now` gives epoch seconds. `hears`: whether changes are pushed to this process at the moment."""
        self._known = known
        self._policy = policy
        self._now = now
        self._shared = shared
        self._hears = hears
        self._reports: dict[Target, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._ticking = asyncio.create_task(self._keep_ticking())

    async def close(self) -> None:
        for task in (self._ticking, *self._reports.values(), *self._tasks):
            if task is not None:
                await stop(task)
        if self._shared is not None:
            await self._shared.close()

    def report_soon(self, health: Health) -> None:
        """Say what the window has that Redis does not know."""
        report = self._reports.get(health.target)
        if report is None or report.done():
            self._reports[health.target] = asyncio.create_task(self._report(health))

    async def judged(self, health: Health) -> None:
        """Wait until Redis has judged what was reported, a second at most."""
        if (report := self._reports.get(health.target)) is not None:
            await asyncio.wait((report,), timeout=JUDGED_WITHIN_S)

    def settle_soon(self, target: Target, outcome: str, reason: Reason | None = None) -> None:
        """Say what the job has found that tried: `works`, `fails`, or nothing (`released`)."""
        self._spawn(self._settle(target, outcome, reason))

    async def claim(self, target: Target, outage: Outage) -> bool:
        """Whether this process's job is the one of all workers that tries; while Redis is away, it is."""
        if self._shared is None:
            return True
        try:
            state = await self._shared.claim(target)
        except AWAY as error:
            _log_if_refused(error)
            return True
        self._take(target, state)
        if state is not None and not state.is_ours:
            outage.probing_until = self._now() + max(state.probing_s, TICK_S) if state.left_s <= 0 else 0.0
        return state is not None and state.is_ours and self._known.outage(target) is outage

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
        known = self._known.outage(target)
        if state is None or not state.is_open or state.reason is None:
            if known is not None and known.fleet is not None and (state is None or state.epoch >= known.epoch):
                self._known.end(target, known)
            return
        if known is not None and known.fleet is not None and known.epoch >= state.epoch:
            return
        now = self._now()
        is_news = known is None or known.pause_s != state.pause_s
        if known is None or known.fleet is None:
            claims = _Claims(self, target)
            known = Outage("open", now - state.open_for_s, now, state.pause_s, state.reason, fleet=claims)
            self._known.begin(target, known)
            is_news = True
            if (health := self._known.used(target)) is not None:
                health.window.clear()
        known.epoch, known.reason, known.pause_s = state.epoch, state.reason, state.pause_s
        known.failed_at = now + state.left_s - state.pause_s
        if known.probe is None:
            known.probing_until = now + state.probing_s if state.probing_s and not state.is_ours else 0.0
        if is_news and (health := self._known.used(target)) is not None:
            tell_began(health, known)

    def _watch(self, target: Target) -> None:
        if (health := self._known.used(target)) is not None:
            health.watched_until = self._now() + self._policy.window_s
            self._roll(health)

    async def _report(self, health: Health) -> None:
        window = health.window
        while window.has_failures_to_say or window.has_answers_to_say:
            window.roll(health.answered, self._now())
            failing, answered = window.take_failing(), window.take_answered(self._now())
            state = await self._say(health, failing, answered)
            if isinstance(state, State):
                self._take(health.target, state)
                break
            is_alone = self._is_alone_in(health)
            if state == "watch" or is_alone:
                window.say_again(failing)
            if not window.has_failures_to_say:
                break
            await asyncio.sleep(JUDGE_AGAIN_S if is_alone and state is None else REPORT_GAP_S)
        self._reports.pop(health.target, None)

    async def _say(
        self,
        health: Health,
        failing: Sequence[tuple[str, bool]],
        answered: Sequence[tuple[int, int]],
    ) -> State | Literal["watch"] | None:
        if self._shared is None:
            return None
        try:
            reason = health.last_failure
            return await self._shared.report(health.target, failing=failing, answered=answered, reason=reason)
        except AWAY as error:
            _log_if_refused(error)
            return None

    def _is_alone_in(self, health: Health) -> bool:
        """Whether this process has stopped alone, and Redis is to judge its failures again: the answers of just before
        are on their way out of the reckoning."""
        outage = self._known.outage(health.target)
        return outage is not None and outage.fleet is None and self._now() < outage.since + JUDGE_FOR_S

    async def _settle(self, target: Target, outcome: str, reason: Reason | None) -> None:
        if self._shared is None:
            return
        try:
            self._take(target, await self._shared.settle(target, outcome, reason))
        except AWAY as error:  # the end of the probe's claim says it later
            _log_if_refused(error)

    async def _read_all(self) -> None:
        if self._shared is None:
            return
        try:
            read_at, states = await self._shared.read()
        except AWAY as error:
            _log_if_refused(error)
            return
        for target, state in states.items():
            self._take(target, state)
        for target, outage in self._known.outages():
            if outage.fleet is not None and target not in states and outage.epoch < read_at * 1000:
                self._known.end(target, outage)

    async def _keep_ticking(self) -> None:
        """Count answers by time, tell those that others wait for, and read what is not pushed."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                for health in self._known.healths():
                    self._roll(health)
                if not self._hears():
                    await self._read_all()
            except Exception:  # a fault of ours must not leave the process blind for good, unseen
                logger.exception("A fault of ours in the breakers' turn; it goes on")

    def _roll(self, health: Health) -> None:
        health.window.roll(health.answered, self._now())
        if health.window.has_answers_to_say and health.watched_until > self._now():
            self.report_soon(health)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Claims:
    """Who decides on the probe of one target."""

    def __init__(self, fleet: Fleet, target: Target) -> None:
        self._fleet = fleet
        self._target = target

    async def claim(self, outage: Outage) -> bool:
        return await self._fleet.claim(self._target, outage)

    def give_up(self, outage: Outage) -> None:
        self._fleet.settle_soon(self._target, "released")


def _log_if_refused(error: Exception) -> None:
    """A Redis that is away needs no word of ours; one that refuses a script does."""
    if isinstance(error, ResponseError):
        logger.warning("Redis refused what the breaker said: %s", error)
