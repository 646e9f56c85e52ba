"""Which Redis a broker or a backend of Celery's is kept in, so that the two can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.utils.url import url_to_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tasks.redis.sentinel import Sentinels

__all__ = ["Place", "place_behind", "place_of"]

Place = tuple[Any, ...]
"""A Redis: host, port and database, or the socket's path and database, or sentinels, master and database."""


def place_of(broker: Any) -> Place:
    """Where a connection of kombu's leads."""
    hostname = broker.hostname or "localhost"
    if "://" in hostname:
        path = url_to_parts(hostname)
        return f"/{path.path}", int(path.query.get("virtual_host") or 0)
    database = int(str(broker.virtual_host or 0).strip("/") or 0)
    if "sentinels" in broker.transport_options:
        return place_behind(broker.transport_options, database)
    return hostname, broker.port or 6379, database


def place_behind(options: Mapping[str, Any], database: int) -> Place:
    sentinels: Sentinels = options["sentinels"]
    return *sorted(sentinels.hosts), sentinels.master_name, database
