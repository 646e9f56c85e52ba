"""Where a Redis is, in one URL of any kind, and the clients and pools for it: nobody else makes them.

- `redis://[user:password@]host[:6379]/0`, and `rediss://` for TLS
- `unix://[user:password@]/path/of/the/socket?db=0`
- `sentinel://[user:password@]host[:26379][;sentinel://host2[:26379]...]/0?master_name=mymaster`, and, where the
  sentinels want to see them, `&sentinel_username=...&sentinel_password=...`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis import ConnectionPool, Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import ConnectionPool as AsyncConnectionPool
from redis.asyncio import Redis as AsyncRedis

from .broken_link import told_as_broken
from .sentinel import AsyncMasterPool, BlockingMasterPool, MasterNotFound, MasterPool, Sentinels

__all__ = ["Address", "failure"]

_SCHEMES: Final = ("redis", "rediss", "unix", "sentinel")
_SENTINEL_OPTIONS: Final = ("master_name", "sentinel_username", "sentinel_password")
_CELERYS_CERT_REQS: Final = re.compile(r"([?&]ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)\b")
"""Celery's documentation writes the option so; redis-py knows none, optional and required."""

_ESCAPES: Final = "the characters '/', '?', '#', '@' and ';' of a password are written %2F, %3F, %23, %40 and %3B"


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis. `str()` and `repr()` hold no secret, `url` and `password` do.

    `host` is the socket's path for unix://, and empty behind Sentinel.
    """

    url: str
    scheme: str
    host: str
    port: int
    database: int
    username: str | None = None
    password: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    """What the URL's query says, without the database."""
    sentinels: Sentinels | None = None

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises ValueError, whose text never repeats the URL, for one that can't be used."""
        if re.search(r"[\s\x00-\x1f\x7f]", url):
            raise ValueError("the Redis URL must have no white space in it")
        url = _CELERYS_CERT_REQS.sub(lambda found: found[1] + found[2].lower(), url)
        parts = [_split(part) for part in url.split(";")] if url.startswith("sentinel:") else [_split(url)]
        scheme = parts[0].scheme
        if scheme == "unix":
            return _of_socket(url, parts[0])
        return _of_sentinels(url, parts) if scheme == "sentinel" else _of_host(url, parts[0])

    def __str__(self) -> str:
        return f"{self._place}, database {self.database}"

    def __repr__(self) -> str:
        return f"Address({self})"

    @property
    def _place(self) -> str:
        if self.sentinels is not None:
            return f"the master {self.sentinels.master_name} of the sentinels {self.sentinels}"
        return self.host if self.scheme == "unix" else f"{self.host}:{self.port}"

    # -- clients and pools, which connect when they are used; `options` are redis-py's, for the connections

    def client(self, **options: Any) -> Redis:
        """A client for threads."""
        if self.sentinels is not None:
            return Redis.from_pool(MasterPool(self.sentinels, **self._master_options, **options))
        return Redis.from_pool(ConnectionPool.from_url(self.url, **options))

    def async_client(self, **options: Any) -> AsyncRedis:
        """A client for one event loop."""
        if self.sentinels is not None:
            return AsyncRedis.from_pool(
                told_as_broken(AsyncMasterPool(self.sentinels, **self._master_options, **options))
            )
        return AsyncRedis.from_pool(told_as_broken(AsyncConnectionPool.from_url(self.url, **options)))

    def blocking_pool(self, *, max_connections: int, timeout_s: float, **options: Any) -> BlockingConnectionPool:
        """A pool for one event loop where those beyond `max_connections` wait up to `timeout_s` for their turn."""
        options |= {"max_connections": max_connections, "timeout": timeout_s}
        if self.sentinels is not None:
            return told_as_broken(BlockingMasterPool(self.sentinels, **self._master_options, **options))
        return told_as_broken(BlockingConnectionPool.from_url(self.url, **options))

    @property
    def _master_options(self) -> dict[str, Any]:
        return {"db": self.database, "username": self.username, "password": self.password}


def failure(error: Exception) -> str:
    """What may be shown of an error of redis-py: its kind, or the whole text where that is ours."""
    return str(error) if isinstance(error, MasterNotFound) else type(error).__name__


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - urlsplit checks the port only when it is asked for
    except ValueError:  # its text may quote the URL, and so the password
        raise ValueError(f"the Redis URL must have a valid host and port; {_ESCAPES}") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("the Redis URL must be one that begins with redis://, rediss://, unix:// or sentinel://")
    return parts


def _of_socket(url: str, parts: SplitResult) -> Address:
    options = dict(parse_qsl(parts.query))
    if not parts.path.strip("/"):
        raise ValueError("the Redis URL must name the socket's path after unix://")
    return Address(
        url=url,
        scheme=parts.scheme,
        host=unquote(parts.path),
        port=0,
        database=_database(options.pop("db", "")),
        username=_decoded(parts.username),
        password=_decoded(parts.password),
        options=options,
    )


def _of_host(url: str, parts: SplitResult) -> Address:
    options = dict(parse_qsl(parts.query))
    database = _database(parts.path, parts.fragment)
    if not parts.hostname:
        raise ValueError("the Redis URL must name a host after the scheme")
    return Address(
        url=url,
        scheme=parts.scheme,
        host=unquote(parts.hostname),
        port=parts.port or 6379,
        database=_database(options.pop("db")) if "db" in options else database,  # as redis-py has it
        username=_decoded(parts.username),
        password=_decoded(parts.password),
        options=options,
    )


def _of_sentinels(url: str, parts: list[SplitResult]) -> Address:
    if any(part.scheme != "sentinel" or not part.hostname for part in parts):
        raise ValueError(
            "the Redis URL must name each sentinel with scheme and host, as in "
            "sentinel://host1:26379;sentinel://host2:26379/0?master_name=mymaster"
        )
    options = dict(parse_qsl(_one("options", (part.query for part in parts))))
    if unknown := sorted(options.keys() - set(_SENTINEL_OPTIONS)):
        # Not the value: it may be a password under a misspelt name.
        raise ValueError(
            f"the Redis URL must have no option {unknown[0]!r}; with Sentinel there are {', '.join(_SENTINEL_OPTIONS)}"
        )
    database = _one("database", (part.path.strip("/") for part in parts))
    if not options.get("master_name"):
        raise ValueError("the Redis URL must name the master that the sentinels watch, as in ?master_name=mymaster")
    return Address(
        url=url,
        scheme="sentinel",
        host="",
        port=0,
        database=_database(database, *(part.fragment for part in parts)),
        username=_decoded(_one("user", (part.username for part in parts))),
        password=_decoded(_one("password", (part.password for part in parts))),
        sentinels=Sentinels(
            hosts=tuple(dict.fromkeys((unquote(part.hostname or ""), part.port or 26379) for part in parts)),
            master_name=options["master_name"],
            username=options.get("sentinel_username"),
            password=options.get("sentinel_password"),
        ),
    )


def _one(what: str, said: Iterable[str | None]) -> str:
    """What the parts of a URL say, of which one is enough."""
    different = {text for text in said if text}
    if len(different) > 1:
        raise ValueError(f"the Redis URL must have one {what} for all of its sentinels: they watch the same master")
    return different.pop() if different else ""


def _database(path: str, *fragments: str) -> int:
    if any(fragments) or not re.fullmatch(r"/?[0-9]*", path):
        raise ValueError(f"the Redis URL must end in the number of a Redis database, such as /0; {_ESCAPES}")
    return int(path.strip("/") or 0)


def _decoded(text: str | None) -> str | None:
    return unquote(text) if text else None
