"""Flower, which shows every task and can stop workers: without a password it does not start.

Flower sends Celery's `import_modules` when it has read its options and before it listens (flower/app.py); workers and
the other commands of Celery send it too. `workers.celery` connects the receiver.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from config.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["asks_for_password", "refuse_open_flower"]

logger = logging.getLogger("promptmill.checks")

OPEN = (
    "Flower has no password: it shows tasks, workers and settings to whoever reaches it, and where "
    "FLOWER_UNAUTHENTICATED_API is set, lets them run tasks and stop workers."
)
ADVICE = (
    "Set FLOWER_BASIC_AUTH=user:password in its environment (or use --basic-auth, which `ps` shows), or let it sign "
    "people in with --auth, or accept it: PROMPTMILL_ALLOW_OPEN_FLOWER=true."
)


def refuse_open_flower(**_: Any) -> None:
    """Receive `import_modules`. Raises SystemExit, which alone gets through Celery's signals."""
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != "flower":
        return
    from tornado.options import options  # noqa: PLC0415 - Flower's own, and no other process needs it

    if options.auth or options.unix_socket or asks_for_password(options.basic_auth or ()):
        return
    if not get_settings().allow_open_flower:
        sys.exit(f"Flower does not start. {OPEN} {ADVICE}")
    logger.warning(OPEN)


def asks_for_password(credentials: Iterable[str]) -> bool:
    """Whether there are credentials (`user:password`), and each holds a password: one without lets everybody in."""
    passwords = [entry.partition(":")[2] for entry in credentials]
    return bool(passwords) and all(passwords)
