"""A Redis URL as Celery wants it, which reads each kind in another way for the queue than for the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from tasks.redis.address import Address
from tasks.redis.sentinel import Sentinels

__all__ = ["CeleryUrl", "broker_of", "result_backend_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CeleryUrl:
    """The class that takes the URL, the transport options that go with it, and the login where the URL has none."""

    name: str
    url: str = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def broker_of(address: Address) -> CeleryUrl:
    """For `broker_url`, `broker_transport`, `broker_transport_options`, `broker_user` and `broker_password`."""
    if address.scheme == "unix":
        # kombu takes such a URL for a host's name, which it does not hide.
        return CeleryUrl(
            name="workers.broker:SocketTransport",
            url=_of_socket(address),
            username=address.username,
            password=address.password,
        )
    if address.sentinels is not None:
        return _behind_sentinels("workers.broker:SentinelTransport", address, address.sentinels)
    return CeleryUrl(name="workers.broker:Transport", url=_of_host(address))


def result_backend_of(address: Address) -> CeleryUrl:
    """For `result_backend` and `result_backend_transport_options`."""
    if address.scheme == "unix":
        return CeleryUrl(name="workers.results:Backend", url=_of_socket(address, _login(address)))
    if address.sentinels is not None:
        return _behind_sentinels("workers.results:SentinelBackend", address, address.sentinels)
    return CeleryUrl(name="workers.results:Backend", url=_of_host(address))


def _behind_sentinels(name: str, address: Address, sentinels: Sentinels) -> CeleryUrl:
    # With all of them in the URL they would be alternates, to which kombu goes on with a transport of its own
    # (workers/broker/kombu/channel.py); and where Celery shows its settings, it hides the password of the first alone.
    host, port = sentinels.hosts[0]
    url = f"sentinel://{_login(address)}{_bracketed(host)}:{port}/{address.database}"
    return CeleryUrl(name=name, url=url, options={"master_name": sentinels.master_name, "sentinels": sentinels})


def _of_socket(address: Address, login: str = "") -> str:
    query = {**address.options, "virtual_host": str(address.database)}
    return f"socket://{login}{quote(address.host)}?{urlencode(query)}"


def _of_host(address: Address) -> str:
    options = dict(address.options)
    if address.scheme == "rediss":
        # redis-py checks the server's certificate unless told not to. Celery wants to be told; kombu, untold, would not
        # even use TLS with a transport that is not its own.
        options.setdefault("ssl_cert_reqs", "required")
    query = f"?{urlencode(options)}" if options else ""
    return f"{address.scheme}://{_login(address)}{_bracketed(address.host)}:{address.port}/{address.database}{query}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _login(address: Address) -> str:
    if address.username is None and address.password is None:
        return ""
    return f"{quote(address.username or '', safe='')}:{quote(address.password or '', safe='')}@"
