"""Who is sent when a slot is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Moved, TooLate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..cost import Cost
    from ..leasing.settlements import Settlements
    from ..leasing.slots import Slot
    from ..permit import Permit
    from ..rate import Plan
    from .forecast import Forecast
    from .wait_queue import Waiter, WaitQueue

__all__ = ["MOST_DIFFERENT_COSTS", "Dispatcher"]

MOST_DIFFERENT_COSTS = 64
"""So many waiters are looked at where requests differ in size."""


class Dispatcher:
    """Takes waiters out of the queue: with a permit, or with the reason why they get none."""

    def __init__(
        self,
        queue: WaitQueue[Waiter],
        forecast: Forecast,
        settlements: Settlements,
        *,
        issue: Callable[[Cost, float | None], Permit],
    ) -> None:
        """`issue` makes the permit of a cost and of its slot's instant in the schedule's time."""
        self._queue = queue
        self._forecast = forecast
        self._settlements = settlements
        self._issue = issue

    def dispatch(self, slots: Iterable[Slot], plan: Plan, *, now: float) -> None:
        """Use the slots that are due. One that comes too late is void, and so is one that nobody can use."""
        for slot in slots:
            waiter = None
            if now > slot.due + plan.use_by_s:
                self._settlements.stale += 1
            else:
                waiter = self._taker(slot, plan)
            if waiter is None:
                self.void(slot)
            else:
                if slot.is_local:
                    self._settlements.charge(waiter.cost, slot.instant)
                else:
                    self._settlements.adjust(slot.cost, waiter.cost, slot.instant)
                self._forecast.note_turn(now, is_last=len(self._queue) == 1)
                self._send(waiter, slot.instant)

    def let_all_go(self, instant: float | None) -> None:
        """Nothing is limited."""
        while self.let_one_go(instant):
            pass

    def let_one_go(self, instant: float | None) -> bool:
        """Whether there was one."""
        if (waiter := self._first()) is None:
            return False
        self._settlements.charge(waiter.cost, instant)
        self._send(waiter, instant)
        return True

    def void(self, slot: Slot) -> None:
        """The request's instant is lost, or it would be sold twice; its tokens are not."""
        if not slot.is_local:
            self._settlements.refund(slot.cost, slot.instant)

    def dismiss(self, waiter: Waiter, why: BaseException) -> None:
        """It goes without a permit."""
        self._queue.leave(waiter)
        if not waiter.answer.done():
            waiter.answer.set_exception(why)

    def eject(self, *, wait_s: float, plan: Plan, live: int) -> None:
        """Whoever may use another key, or be parked for so long a wait, waits here no longer."""
        for waiter in list(self._queue):
            if waiter.movable:
                self.dismiss(waiter, Moved())
            elif waiter.park_after_s is not None and wait_s > waiter.park_after_s:
                gap_s = self._forecast.gap_s(plan, live=live)
                self.dismiss(waiter, self._forecast.parked(wait_s, waiter.park_after_s, gap_s=gap_s))

    def abandon(self, waiter: Waiter) -> None:
        """Its task was cancelled, perhaps at the moment when it had its permit."""
        if waiter.answer.done() and not waiter.answer.cancelled() and waiter.answer.exception() is None:
            waiter.answer.result().give_back()
        else:
            self._queue.leave(waiter)

    def _send(self, waiter: Waiter, instant: float | None) -> None:
        self._queue.take(waiter)
        waiter.answer.set_result(self._issue(waiter.cost, instant))

    def _taker(self, slot: Slot, plan: Plan) -> Waiter | None:
        """Whose turn it is, unless the slot is sized for one that needs much more."""
        first, owner = self._first(), slot.owner if slot.owner and not slot.owner.answer.done() else None
        if first is None or not plan.counts_tokens:
            return first
        if _fits(first, slot) and (owner is None or not _needs_much_more(owner, first)):
            return first
        return owner or next((each for each in self._queue.upcoming(MOST_DIFFERENT_COSTS) if _fits(each, slot)), None)

    def _first(self) -> Waiter | None:
        while (first := self._queue.first()) is not None:
            if first.answer.done():
                self._queue.leave(first)
            elif self._forecast.is_too_late(first):
                self.dismiss(first, TooLate("the job's deadline passed while it waited for the provider's limits"))
            else:
                return first
        return None


def _fits(waiter: Waiter, slot: Slot) -> bool:
    return (
        waiter.cost.input_tokens <= slot.cost.input_tokens
        and waiter.cost.of("tokens") <= slot.cost.of("tokens")
        and waiter.cost.output_tokens <= slot.cost.output_tokens
    )


def _needs_much_more(owner: Waiter, other: Waiter) -> bool:
    return owner.cost.of("tokens") > 2 * other.cost.of("tokens")
