"""A Redis URL as Celery wants it, which reads each kind in another way for the queue than for the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from tasks.address import Address

__all__ = ["CeleryUrl", "broker_of", "result_backend_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CeleryUrl:
    """The class that takes the URL, and the transport options that go with it."""

    name: str
    url: str = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    is_socket: bool = False


def broker_of(address: Address) -> CeleryUrl:
    """For `broker_url`, `broker_transport` and `broker_transport_options`."""
    names = {"unix": "SocketTransport", "sentinel": "SentinelTransport"}
    return _celery_url(f"workers.broker:{names.get(address.scheme, 'Transport')}", address)


def result_backend_of(address: Address) -> CeleryUrl:
    """For `result_backend` and `result_backend_transport_options`."""
    name = "SentinelBackend" if address.scheme == "sentinel" else "Backend"
    return _celery_url(f"workers.results:{name}", address)


def _celery_url(name: str, address: Address) -> CeleryUrl:
    if address.scheme == "unix":
        query = {**address.options, "virtual_host": str(address.database)}
        url = f"socket://{_login(address)}{quote(address.host)}?{urlencode(query)}"
        return CeleryUrl(name=name, url=url, is_socket=True)
    if address.sentinels is not None:
        return CeleryUrl(name=name, url=_of_one_sentinel(address), options=_of_all_sentinels(address))
    return CeleryUrl(name=name, url=_of_host(address))


def _of_one_sentinel(address: Address) -> str:
    # All of them would be alternates, to which kombu goes on with a transport of its own (workers/broker/channel.py);
    # and where Celery shows its settings, it hides the password of the first alone.
    assert address.sentinels is not None
    host, port = address.sentinels.hosts[0]
    return f"sentinel://{_login(address)}{_bracketed(host)}:{port}/{address.database}"


def _of_all_sentinels(address: Address) -> dict[str, Any]:
    sentinels = address.sentinels
    assert sentinels is not None
    login = {"username": sentinels.username, "password": sentinels.password}
    return {
        "master_name": sentinels.master_name,
        "sentinels": sentinels.hosts,
        "sentinel_kwargs": {name: value for name, value in login.items() if value is not None},
    }


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
