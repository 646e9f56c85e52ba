"""`promptmill cache`: the answers that serve equal prompts, and how they are deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Final

import typer
from redis.exceptions import RedisError

from ..answers.stock import Stock, StockView
from .common import JsonOption, RedisOption, address_of, fail_for_redis, settings_or_fail

__all__ = ["cache"]

TIMEOUT_S = 10.0
_MEGABYTE = 1024 * 1024

_WORDS: Final[dict[str, str]] = {
    "memory": "found in memory",
    "redis": "found in Redis",
    "shared": "had an equal one's",
    "followed": "waited for one",
    "missed": "called",
    "skipped": "called, Redis away",
}
"""What became of look-ups (`answers.tally.Tier`), as a person reads it."""

TenantOption = Annotated[str | None, typer.Option("--tenant", help="Only the answers of this tenant's prompts.")]

cache = typer.Typer(help="Answers that serve equal prompts: stats, clear.", no_args_is_help=True)


@cache.command()
def stats(tenant: TenantOption = None, as_json: JsonOption = False, redis: RedisOption = None) -> None:
    """Show how many answers are stored, and what the look-ups of all tenants found and saved."""
    with _stock(redis) as stock:
        view = stock.view(tenant=tenant)
    if as_json:
        typer.echo(json.dumps({**asdict(view), "hit_rate": view.hit_rate}))
        return
    for name, figure in _lines(view):
        typer.echo(f"{name:<22}{figure}")


@cache.command()
def clear(tenant: TenantOption = None, as_json: JsonOption = False, redis: RedisOption = None) -> None:
    """Delete stored answers. Workers forget what they keep in memory within five seconds."""
    with _stock(redis) as stock:
        deleted = stock.clear(tenant=tenant)
    typer.echo(json.dumps({"deleted": deleted}) if as_json else f"Deleted {deleted:,} answers.")


@contextmanager
def _stock(redis: str | None) -> Iterator[Stock]:
    settings = settings_or_fail()
    address = address_of(redis, settings.broker)
    try:
        with address.client(socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as client:
            yield Stock(client, key_prefix=settings.key_prefix)
    except (RedisError, OSError) as error:
        fail_for_redis(error)


def _lines(view: StockView) -> Iterator[tuple[str, str]]:
    yield "answers", f"{view.answers:,}, {view.bytes / _MEGABYTE:,.1f} MB"
    for tier, n in view.found.items():
        yield _WORDS[tier], f"{n:,}"
    yield "hit rate", "-" if view.hit_rate is None else f"{view.hit_rate:.1%}"
    yield "saved", f"${view.saved_usd:,.4f}"
