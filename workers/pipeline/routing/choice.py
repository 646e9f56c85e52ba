"""Which model a route chooses: decisions with values, no clock and no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.catalog import Rule, When
    from tasks.wire.vocabulary import Priority

__all__ = ["Facts", "Target", "by_price", "cheapest", "fastest", "first_rule", "words"]


_UNKNOWN: Final = f"{inf:.2g}"
"""Of a price."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules may ask of a job. `left_s`: seconds to its deadline, None without one.

    `input_tokens` estimates its input for the model of a name, and is called only where a rule asks.
    """

    tag: str | None
    priority: Priority
    tenant: str | None
    left_s: float | None
    input_tokens: Callable[[str], int]


def first_rule(rules: Sequence[Rule], facts: Facts) -> tuple[int, Rule] | None:
    """The first rule that fits, with its number from 1; None: none does."""
    return next(((number, rule) for number, rule in enumerate(rules, 1) if _fits(rule, facts)), None)


def _fits(rule: Rule, facts: Facts) -> bool:
    when = rule.when
    return (
        when.tag in (None, facts.tag)
        and when.priority in (None, facts.priority)
        and when.tenant in (None, facts.tenant)
        and (when.deadline_under_s is None or (facts.left_s is not None and facts.left_s < when.deadline_under_s))
        and _fits_input(when, rule.model, facts)
    )


def _fits_input(when: When, model: str, facts: Facts) -> bool:
    over, under = when.input_tokens_over, when.input_tokens_under
    if over is None and under is None:
        return True
    tokens = facts.input_tokens(model)
    return (over is None or tokens > over) and (under is None or tokens < under)


class Target(NamedTuple):
    """One of a route's targets, for one job. None: not known. `wait_s`: seconds until its limit gives a turn."""

    name: str
    price_usd: float | None = None
    latency_s: float | None = None
    wait_s: float = 0.0


def by_price(names: Sequence[str], prices_usd: Sequence[float | None]) -> tuple[list[str], str]:
    """The names in order of the expected price, those of unknown price (None) last, and why the first is the first."""
    # Without a `Target` for each, or a function that is called for each: jobs without a deadline are most jobs.
    prices = [inf if price is None else price for price in prices_usd]
    order = sorted(range(len(prices)), key=prices.__getitem__)
    first, second = prices[order[0]], prices[order[1]] if len(order) > 1 else inf
    return [names[place] for place in order], _cheapest("", f"{first:.2g}", f"{second:.2g}")


def cheapest(targets: Sequence[Target], *, left_s: float) -> tuple[list[str], str]:
    """As `by_price`, but those come first whose answer may be in time (`left_s`: seconds to the deadline)."""
    ranked = sorted(targets, key=lambda target: (_is_late(target, left_s), _price(target)))
    in_time = _in_time(ranked, left_s)
    first, *others = map(_price, ranked)
    second = next((price for price in others if price != inf), inf)
    return _names(ranked), _cheapest(in_time, f"{first:.2g}", f"{second:.2g}")


@lru_cache(maxsize=1_024)
def _cheapest(in_time: str, first_usd: str, next_usd: str) -> str:
    # Prices differ from job to job, two digits of them do not.
    if first_usd == _UNKNOWN:
        return f"cheapest{in_time}: no price is known, so the list's order"
    beside = "" if next_usd == _UNKNOWN else f", the next {_usd(next_usd)}"
    return f"cheapest{in_time}: about {_usd(first_usd)}{beside}"


def _price(target: Target) -> float:
    return inf if target.price_usd is None else target.price_usd


def fastest(targets: Sequence[Target], *, left_s: float | None) -> tuple[list[str], str]:
    """The names in order of the time to an answer, the limit's wait included, and why the first is the first.

    Those come first whose answer may be in time (`left_s`: seconds to the deadline, None without one), and of these
    those whose latency is known.
    """

    def rank(target: Target) -> tuple[bool, bool, float]:
        takes_s = None if target.latency_s is None else target.latency_s + target.wait_s
        return _is_late(target, left_s), *_last_if_none(takes_s)

    ranked = sorted(targets, key=rank)
    first, in_time = ranked[0], _in_time(ranked, left_s)
    if first.latency_s is None:
        return _names(ranked), f"fastest{in_time}: no latency is known yet, so the list's order"
    waits = f" after a wait of {_seconds(first.wait_s)}" if first.wait_s else ""
    return _names(ranked), f"fastest{in_time}: answers in about {_seconds(first.latency_s)}{waits}"


def _is_late(target: Target, left_s: float | None) -> bool:
    return left_s is not None and target.wait_s + (target.latency_s or 0.0) > left_s


def _in_time(ranked: Sequence[Target], left_s: float | None) -> str:
    """What to say where some would answer too late. Those come last."""
    some_are_late = _is_late(ranked[-1], left_s) and not _is_late(ranked[0], left_s)
    return " of those in time" if some_are_late else ""


def _names(targets: Sequence[Target]) -> list[str]:
    return [target.name for target in targets]


def _last_if_none(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0.0


def _usd(digits: str) -> str:
    return f"${float(digits):.9f}".rstrip("0").rstrip(".")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s"


def words(when: When) -> str:
    """What a rule asks for, as its author wrote it."""
    return ", ".join(f"{name} = {_toml(value)}" for name, value in when.stated().items())


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else str(value)
