"""The chain of a job: which model is asked first, and which after it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from config.catalog import UnknownModel

from ...prompt.failure import Failure
from ..limits import estimate
from .chain import Chain
from .choice import Facts, Target, by_price, cheapest, fastest, first_rule, words
from .prices import Prices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import SecretStr

    from config.catalog import Catalog, Provider
    from config.catalog import Route as CatalogRoute

    from ...limiter import LimiterRegistry
    from ...prompt.job import PromptJob
    from ..trip import Route
    from .speeds import Speeds

__all__ = ["Router"]

EXPLORE_EVERY = 20
"""Of so many jobs, one goes to a target whose latency is not known (any more): a model that nobody asks would stay
slow, or unknown, for ever."""


class Router:
    """Chooses by the catalogue's routes, and puts the fallbacks behind what was chosen."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        limits: LimiterRegistry,
        find_route: Callable[[str], Route],
        keys_of: Callable[[Provider], Sequence[SecretStr | None]],
        speeds: Speeds,
        now: Callable[[], float],
    ) -> None:
        """`find_route` leads from a model's name to where its jobs go. `now` gives epoch seconds."""
        self._catalog = catalog
        self._limits = limits
        self._find_route = find_route
        self._keys_of = keys_of
        self._speeds = speeds
        self._prices = Prices(limits=limits, find_route=find_route, speeds=speeds, now=now)
        self._now = now
        self._chosen: Counter[str] = Counter()

    def has_chain(self, name: str, *, own: bool | None) -> bool:
        """Whether jobs of this name may be answered by more than one model. `own`: whether they have fallbacks of
        their own, None leaves that to the catalogue.
        """
        if own or name in self._catalog.routes:
            return True
        return own is None and bool(self._fallbacks_of(name))

    def chain(self, job: PromptJob) -> Chain:
        """The models that may answer the job. Raises `Failure` (`bad_request`) for a fallback that is a route."""
        own = job.options.fallbacks
        for name in own or ():
            if name in self._catalog.routes:
                raise Failure("bad_request", f"`fallbacks`: {name[:100]!r} is a route; name models")
        route = self._catalog.routes.get(job.model)
        if route is None:
            return Chain(_each_once(job.model, self._fallbacks_of(job.model) if own is None else own))
        names, why, rule = self._choose(route, job)
        behind = (names[1:] or self._fallbacks_of(names[0])) if own is None else own
        return Chain(_each_once(names[0], behind), chosen={"name": route.name, "rule": rule, "why": why})

    def _fallbacks_of(self, name: str) -> Sequence[str]:
        try:
            return self._catalog.model(name).fallbacks
        except UnknownModel:
            return ()

    def _choose(self, route: CatalogRoute, job: PromptJob) -> tuple[list[str], str, int | None]:
        """The model that is chosen and the targets behind it, why, and the number of the rule that did it."""
        if route.rules and (found := first_rule(route.rules, self._facts(job))) is not None:
            number, rule = found
            return [rule.model], words(rule.when), number
        if route.default is not None:
            return [route.default], "default: no rule fits" if route.rules else "default", None
        names, why = self._ranked(route, job)
        return names, why, None

    def _facts(self, job: PromptJob) -> Facts:
        options = job.options
        return Facts(
            tag=options.tag,
            priority=options.priority,
            tenant=options.tenant,
            left_s=self._left_s(job),
            input_tokens=lambda name: estimate(self._limits, job, self._find_route(name)).input_tokens,
        )

    def _left_s(self, job: PromptJob) -> float | None:
        deadline_at = job.options.deadline_at
        return None if deadline_at is None else deadline_at - self._now()

    def _ranked(self, route: CatalogRoute, job: PromptJob) -> tuple[list[str], str]:
        match route.choose:
            case "first":
                return list(route.targets), "first of the list"
            case "cheapest":
                return self._cheapest(route, job)
            case "fastest":
                return self._fastest(route, job)

    def _fastest(self, route: CatalogRoute, job: PromptJob) -> tuple[list[str], str]:
        targets = self._timed(route, job)
        unknown = [target.name for target in targets if target.latency_s is None]
        self._chosen[route.name] += 1
        if unknown and self._chosen[route.name] % EXPLORE_EVERY == 0:
            why = f"fastest: one job in {EXPLORE_EVERY} goes to a target of unknown latency"
            return _each_once(unknown[0], route.targets), why
        return fastest(targets, left_s=self._left_s(job))

    def _cheapest(self, route: CatalogRoute, job: PromptJob) -> tuple[list[str], str]:
        prices, deadline_at = self._prices.of(route, job), job.options.deadline_at
        if deadline_at is None:  # who has all the time there is need not ask how long it takes
            return by_price(route.targets, prices)
        timed = zip(self._timed(route, job), prices, strict=True)
        targets = [target._replace(price_usd=price_usd) for target, price_usd in timed]
        return cheapest(targets, left_s=deadline_at - self._now())

    def _timed(self, route: CatalogRoute, job: PromptJob) -> list[Target]:
        now = self._now()
        return [
            Target(name, latency_s=self._speeds.latency_s(name, now=now), wait_s=self._wait_s(name, job))
            for name in route.targets
        ]

    def _wait_s(self, name: str, job: PromptJob) -> float:
        route = self._find_route(name)
        try:
            keys = self._keys_of(route.provider)
        except Failure:
            return 0.0  # another worker may have keys
        return self._limits.expected_wait_s(route.model, keys, job.options.priority)


def _each_once(first: str, others: Sequence[str]) -> list[str]:
    return list(dict.fromkeys((first, *others)))
