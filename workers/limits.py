"""`promptmill limits`: the shared limiters as they stand, read from Redis without changing anything."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from config.settings import SettingsError, get_settings

from .limiter import LimiterView, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["limits"]

TIMEOUT_S = 5.0


def limits(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each limiter, a line each.")] = False,
    redis: Annotated[
        str | None, typer.Option("--redis", help="Redis URL of the queue.", show_default="settings")
    ] = None,
) -> None:
    """Show, for each model and key in use: permitted, used, waiting, paused until.

    A key is shown by its fingerprint; `all keys` are the organisation's limits above them. Figures are of the last
    minute; models that nobody has called for two hours are left out.
    """
    try:
        settings = get_settings()
        views = asyncio.run(_read(redis or settings.broker, settings.key_prefix))
    except SettingsError as error:
        _fail(str(error))
    except (RedisError, OSError, ValueError) as error:
        _fail(f"Redis can't be asked ({type(error).__name__}); check that it runs, and PROMPTMILL_REDIS_URL or --redis")
    if as_json:
        for view in views:
            typer.echo(json.dumps(asdict(view)))
    else:
        Console(markup=False).print(_table(views) if views else "No worker has used a limiter yet.")


async def _read(url: str, key_prefix: str) -> list[LimiterView]:
    redis: Redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    try:
        return await snapshot(redis, key_prefix=key_prefix)
    finally:
        await redis.aclose()


def _table(views: Iterable[LimiterView]) -> Table:
    table = Table("model", "key", box=None, pad_edge=False)
    for name in ("requests a minute", "tokens a minute", "in flight", "waiting", "429s", "est/actual tokens"):
        table.add_column(name, justify="right")
    table.add_column("paused for", justify="right")
    views = list(views)
    for view, after in zip(views, [*views[1:], None], strict=True):
        table.add_row(
            f"{view.provider}/{view.model}",
            view.fingerprint,
            _used("requests", view.used_last_minute, view.permitted_per_minute),
            _used("tokens", view.used_last_minute, view.permitted_per_minute),
            f"{view.in_flight}" + (f" of {view.max_in_flight}" if view.max_in_flight else ""),
            str(view.waiting),
            str(view.refused),
            f"{view.estimated_tokens:,} / {view.actual_tokens:,}",
            "-" if view.paused_until is None else f"{max(0.0, view.paused_until - time.time()):.0f} s",
        )
        is_last_key = after is None or (after.provider, after.model) != (view.provider, view.model)
        if is_last_key and view.organisation_permitted_per_minute:
            _add_organisation(table, view)
    return table


def _add_organisation(table: Table, view: LimiterView) -> None:
    used, permitted = view.organisation_used_last_minute, view.organisation_permitted_per_minute
    limits = (_used(name, used, permitted) if name in permitted else "-" for name in ("requests", "tokens"))
    table.add_row(f"{view.provider}/{view.model}", "all keys", *limits, "-", "-", "-", "-", "-")


def _used(dimension: str, used: Mapping[str, float], permitted: Mapping[str, float]) -> str:
    amount = f"{used.get(dimension, 0.0):,.0f}"
    return f"{amount} of {permitted[dimension]:,.0f}" if dimension in permitted else f"{amount}, no limit known"


def _fail(text: str) -> None:
    typer.echo(f"Error: {text}", err=True)
    raise typer.Exit(2)
