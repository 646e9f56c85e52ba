"""`promptmill limits`: the shared limiters as they stand, read from Redis without changing anything."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from config.settings import get_settings
from tasks.address import Address, failure

from .limiter import LimiterView, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["limits"]

TIMEOUT_S = 5.0


def limits(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each limiter, a line each.")] = False,
    redis: Annotated[
        str | None, typer.Option("--redis", help="Redis URL of the queue.", show_default="settings")
    ] = None,
) -> None:
    """Show, for each model and key in use: permitted, used, waiting, paused until.

    A key is shown by its fingerprint. Figures are of the last minute; models that nobody has called for two hours are
    left out.
    """
    try:
        settings = get_settings()
        address = Address.of(redis or settings.broker)
    except ValueError as error:  # SettingsError is one too
        _fail(str(error))
    try:
        views = asyncio.run(_read(address, settings.key_prefix))
    except (RedisError, OSError) as error:
        _fail(f"Redis can't be asked: {failure(error)}. Check that it runs, and PROMPTMILL_REDIS_URL or --redis.")
    if as_json:
        for view in views:
            typer.echo(json.dumps(asdict(view)))
    else:
        Console(markup=False).print(_table(views) if views else "No worker has used a limiter yet.")


async def _read(address: Address, key_prefix: str) -> list[LimiterView]:
    redis = address.async_client(socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    try:
        return await snapshot(redis, key_prefix=key_prefix)
    finally:
        await redis.aclose()


def _table(views: Iterable[LimiterView]) -> Table:
    table = Table("model", "key", box=None, pad_edge=False)
    for name in ("requests a minute", "tokens a minute", "in flight", "waiting", "429s", "est/actual tokens"):
        table.add_column(name, justify="right")
    table.add_column("paused for", justify="right")
    for view in views:
        table.add_row(
            f"{view.provider}/{view.model}",
            view.fingerprint,
            _used(view, "requests"),
            _used(view, "tokens"),
            f"{view.in_flight}" + (f" of {view.max_in_flight}" if view.max_in_flight else ""),
            str(view.waiting),
            str(view.refused),
            f"{view.estimated_tokens:,} / {view.actual_tokens:,}",
            "-" if view.paused_until is None else f"{max(0.0, view.paused_until - time.time()):.0f} s",
        )
    return table


def _used(view: LimiterView, dimension: str) -> str:
    used = view.used_last_minute.get(dimension, 0.0)
    permitted = view.permitted_per_minute.get(dimension)
    return f"{used:,.0f} of {permitted:,.0f}" if permitted is not None else f"{used:,.0f}, no limit known"


def _fail(text: str) -> NoReturn:
    typer.echo(f"Error: {text}", err=True)
    raise typer.Exit(2)
