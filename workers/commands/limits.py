"""`promptmill limits`: the shared limiters as they stand, read from Redis without changing anything."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from ..breaker import BreakerView, look
from ..limiter import LimiterView, snapshot
from ..telemetry.terminal import printable
from .common import JsonOption, RedisOption, address_of, fail_for_redis, settings_or_fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tasks.redis.address import Address

__all__ = ["limits"]

TIMEOUT_S = 5.0
LEAST_NAME_WIDTH = 16


def limits(
    as_json: JsonOption = False,
    redis: RedisOption = None,
) -> None:
    """Show what is permitted and used, who waits and how long, for each model and key, and which providers are out.

    First line: the last minute's requests and tokens, calls in flight, requests waiting for their turn, 429s, and the
    tokens estimated for all calls so far.

    Second line: what is permitted, how long a request that came now would wait, how much longer a 429 holds everybody
    up, and the tokens that the calls really took. A `?` is not known.

    A model whose provider fails is named below the table: its breaker is open, its jobs wait, and one tries at a time.

    A key is shown by its fingerprint; `all keys` are the organisation's limits above them. Limiters that nobody has
    used for two days are left out.
    """
    settings = settings_or_fail()
    address = address_of(redis, settings.broker)
    try:
        views, breakers = asyncio.run(_read(address, settings.key_prefix))
    except (RedisError, OSError) as error:
        fail_for_redis(error)
    if as_json:
        for view in views:
            typer.echo(json.dumps(asdict(view)))
        for breaker in breakers:
            if breaker.is_open:
                typer.echo(json.dumps({"breaker": asdict(breaker)}))
    else:
        console = Console(markup=False)
        console.print(_table(views) if views else "No worker has used a limiter yet.")
        for view in views:
            if view.asked_wait_s:
                console.print(f"\n{_asked(view)}")
        for breaker in breakers:
            if breaker.is_open:
                console.print(f"\n{_out(breaker)}")


async def _read(address: Address, key_prefix: str) -> tuple[list[LimiterView], list[BreakerView]]:
    redis = address.async_client(socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    try:
        return await snapshot(redis, key_prefix=key_prefix), await look(redis, key_prefix=key_prefix)
    finally:
        await redis.aclose()


def _out(breaker: BreakerView) -> str:
    """For a provider that fails."""
    name = printable(f"{breaker.provider}/{breaker.model}")
    fails = f"{name} is out for {_duration(breaker.open_for_s)}: {printable(breaker.why)}. Its jobs wait"
    if breaker.state == "probing":
        return f"{fails} for one that tries now."
    return (
        f"{fails}; one tries in {_duration(breaker.next_probe_s)}."
        if breaker.next_probe_s
        else f"{fails} for one to try."
    )


def _asked(view: LimiterView) -> str:
    """For a provider that asks for more than a pause."""
    name = printable(f"{view.provider}/{view.model}")
    asks = f"{name} (key {view.fingerprint}): the provider asks to wait {_duration(view.asked_wait_s)}."
    if view.paused_for_s:
        return f"{asks} Its jobs wait {_duration(view.paused_for_s)}, and then one tries."
    return f"{asks} One job tries whether that holds, and the others wait for its answer."


def _table(views: Iterable[LimiterView]) -> Table:
    """Two lines for each limiter, so that it fits into 80 columns."""
    table = Table(box=None, pad_edge=False)
    table.add_column("model\nkey", overflow="fold", min_width=LEAST_NAME_WIDTH)
    headings = (
        "requests\na minute",
        "tokens\na minute",
        "in\nflight",
        "waiting\nwait",
        "429s\npaused",
        "estimated\nactual",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    views = list(views)
    for view, after in zip(views, [*views[1:], None], strict=True):
        if table.rows:
            table.add_row()
        table.add_row(
            f"{printable(f'{view.provider}/{view.model}')}\n{view.fingerprint}",
            *_figures(view.used_last_minute, view.permitted_per_minute),
            f"{view.in_flight:,}\n" + (f"of {view.max_in_flight:,}" if view.max_in_flight else ""),
            f"{view.waiting:,}\n{_duration(view.wait_s)}",
            f"{view.refused:,}\n{_duration(view.paused_for_s)}",
            f"{_count(view.estimated_tokens)}\n{_count(view.actual_tokens)}",
        )
        is_last_key = after is None or (after.provider, after.model) != (view.provider, view.model)
        if is_last_key and view.organisation_permitted_per_minute:
            table.add_row()
            figures = _figures(view.organisation_used_last_minute, view.organisation_permitted_per_minute)
            table.add_row(f"{printable(f'{view.provider}/{view.model}')}\nall keys", *figures)
    return table


def _figures(used: Mapping[str, float], permitted: Mapping[str, float]) -> tuple[str, str]:
    """Requests, and tokens."""
    return (
        f"{_count(used['requests'])}\n{_permitted(permitted, 'requests')}",
        f"{_count(used['tokens'])}\n{_permitted(permitted, 'tokens', 'input', 'output')}",
    )


def _permitted(permitted: Mapping[str, float], *dimensions: str) -> str:
    known = [permitted[each] for each in dimensions if each in permitted]
    return "of " + ("\n+ ".join(map(_count, known)) if known else "?")


def _count(figure: float) -> str:
    return f"{figure:,.0f}" if figure < 1_000_000 else f"{figure / 1_000_000:,.1f}M"


def _duration(seconds: float | None) -> str:
    """`?`: nobody can tell. `-`: none worth speaking of."""
    if seconds is None:
        return "?"
    if seconds < 0.05:
        return "-"
    if seconds >= 3_600:
        return f"{seconds / 3_600:,.1f} h"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
