"""A schedule in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from redis.exceptions import ConnectionError as RedisConnectionError

from workers.limiter.cost import Cost, DimensionName
from workers.limiter.heard.headers import LearnedLimit
from workers.limiter.rate import BIN_S, Dimension, Plan
from workers.limiter.shared.schedule import Ask, Grant, Pause, PauseReport


class PlainSchedule:
    """One process's schedule as the scripts keep it, without the fairness between processes."""

    def __init__(self, plan: Plan, *, latency_s: float = 0.001, live: int = 1) -> None:
        self.plan = plan
        self.latency_s = latency_s
        self.live = live
        self.is_away = False
        self.reply_is_lost = False
        self.learned: Mapping[LearnedLimit, int] = {}
        self.asks: list[Ask] = []
        self.pauses: list[PauseReport] = []
        self.sold: list[float] = []
        self.epoch = 1
        self.paused_until = 0.0
        self._tat = dict.fromkeys((each.name for each in plan.dimensions), 0.0)
        self._charged: dict[DimensionName, Counter[int]] = {each.name: Counter() for each in plan.dimensions}
        self._answered: dict[int, Grant] = {}

    async def acquire(self, ask: Ask) -> Grant:
        await asyncio.sleep(self.latency_s)
        if self.is_away:
            raise RedisConnectionError("away")
        if ask.seq not in self._answered:
            self.asks.append(ask)
            self._answered[ask.seq] = self._grant(ask)
        if self.reply_is_lost:
            self.reply_is_lost = False
            raise RedisConnectionError("the reply was lost")
        return self._answered[ask.seq]

    async def pause(self, report: PauseReport) -> Pause:
        await asyncio.sleep(self.latency_s)
        if self.is_away:
            raise RedisConnectionError("away")
        self.pauses.append(report)
        now = asyncio.get_running_loop().time()
        self.epoch += 1
        self.paused_until = max(self.paused_until, now + (report.asked_s or 1.0))
        return Pause(now, self.epoch, self.paused_until)

    def sells_to_others(self, *, until: float) -> None:
        """Other processes have leased what there was up to this instant."""
        for each in self.plan.dimensions:
            self._tat[each.name] = max(self._tat[each.name], until)

    def _grant(self, ask: Ask) -> Grant:
        now = asyncio.get_running_loop().time()
        self.epoch = max(self.epoch, ask.epoch)
        horizon_s, wait_s, reason = 0.5, 0.0, "done"
        slots: list[float] = []
        for refund in ask.refunds:
            self._settle(refund.bin or int(now / BIN_S), Cost(refund.input_tokens, refund.output_tokens))
        for cost in ask.costs:
            at = max(now, self.paused_until)
            for each in self.plan.dimensions:
                at = max(at, self._tat[each.name] + (cost.of(each.name) - each.burst) / each.rate_per_s)
            for each in self.plan.dimensions:
                at = self._when_there_is_room(each, cost.of(each.name) + ask.beyond_tokens, at)
            if at > now + horizon_s:
                wait_s, reason = at - now, "far"
                break
            for each in self.plan.dimensions:
                self._tat[each.name] = max(self._tat[each.name], at) + cost.of(each.name) / each.rate_per_s
                self._charged[each.name][int(at / BIN_S)] += cost.of(each.name)
            slots.append(at)
        self.sold += slots
        return Grant(
            now=now,
            epoch=self.epoch,
            paused_until=self.paused_until if self.paused_until > now else 0.0,
            wait_s=wait_s,
            horizon_s=horizon_s,
            reason=reason,
            slots=slots,
            live=self.live,
            processes=self.live,
            learned=self.learned,
        )

    def _settle(self, bin_: int, back: Cost) -> None:
        for each in self.plan.dimensions:
            if each.name != "requests":
                self._tat[each.name] -= back.of(each.name) / each.rate_per_s
                self._charged[each.name][bin_] -= back.of(each.name)

    def _when_there_is_room(self, dimension: Dimension, amount: int, at: float) -> float:
        """As window.lua: what was taken since `span_s` before the slot, and is sold for later, counts."""
        while dimension.span_s:
            counts = {
                bin_: tokens
                for bin_, tokens in self._charged[dimension.name].items()
                if (bin_ + 1) * BIN_S + dimension.span_s > at + 1e-9
            }
            if not counts or sum(counts.values()) + amount <= dimension.limit:
                break
            at = (min(counts) + 1) * BIN_S + dimension.span_s
        return at
