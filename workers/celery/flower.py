"""Flower on our transport: it does not start without a password, and it shows the queues' lengths.

Flower sends Celery's `import_modules` when it has read its options and before it listens (flower/app.py); workers and
the other commands of Celery send it too. `workers.celery.app` connects the receiver.

Flower knows brokers by the scheme of their URL, and ours names a transport of ours. Celery's command line imports
Flower, as every plug-in, before it imports our app, and so its table of pages can be changed before it is used.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from config.settings import get_settings
from tasks.redis.address import Address

from ..checks import lists_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from config.settings import Settings

__all__ = ["QueueLengths", "asks_for_password", "refuse_open_flower", "show_queue_lengths"]

logger = logging.getLogger("promptmill.checks")

REDIS_TIMEOUT_S = 3.0

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


class QueueLengths:
    """What Flower's pages ask a broker for (flower/utils/broker.py), read from our lists."""

    def __init__(self, settings: Settings) -> None:
        self._address = Address.of(settings.broker)
        self._settings = settings

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """How many messages of each queue wait for a worker. Raises redis's errors."""
        lists = {name: [*lists_of(name, self._settings)] for name in names}
        client = self._address.async_client(socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
        async with client as redis, redis.pipeline(transaction=False) as commands:
            for name in (name for names in lists.values() for name in names):
                commands.llen(self._settings.key_prefix + name)
            lengths = iter(await commands.execute())
        waiting = {queue: sum(next(lengths) for _ in names) for queue, names in lists.items()}
        return [{"name": queue, "messages": n, "messages_ready": n} for queue, n in waiting.items()]


def show_queue_lengths() -> None:
    """Have Flower's two pages of queues ask us. Without effect where Flower is not imported."""
    urls = sys.modules.get("flower.urls")
    if urls is None:
        return
    urls.handlers[:] = [_on_our_transport(handler) for handler in urls.handlers]


def _on_our_transport(handler: Any) -> Any:
    """One entry of Flower's table: a pattern and its class, or tornado's `url` of them."""
    from flower.api.tasks import GetQueueLengths  # noqa: PLC0415 - only where Flower is imported already
    from flower.views.broker import BrokerView  # noqa: PLC0415
    from tornado.web import url  # noqa: PLC0415

    if isinstance(handler, url):
        if handler.handler_class is BrokerView:
            return url(handler.regex.pattern, _asking_us(BrokerView), handler.kwargs, handler.name)
        return handler
    pattern, cls, *rest = handler
    return (pattern, _asking_us(cls), *rest) if cls is GetQueueLengths else handler


def _asking_us(page: type[Any]) -> type[Any]:
    def get_broker(self: Any) -> QueueLengths:
        return QueueLengths(get_settings())

    return type(page.__name__, (page,), {"get_broker": get_broker, "__doc__": page.__doc__})
