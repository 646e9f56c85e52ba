"""What kombu and Celery make of our URLs, with the workers' own transports and backends."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys

import pytest
from celery import Celery
from kombu.utils.json import dumps
from redis.connection import SSLConnection, UnixDomainSocketConnection

from config.celery_urls import broker_of, result_backend_of
from tasks.redis.address import Address

SECRET = "hunter2-canary"
SENTINELS = f"sentinel://:{SECRET}@a:1;sentinel://b:2/3?master_name=mill&sentinel_password={SECRET}"


def set_up(broker: str, results: str | None = None) -> Celery:
    """An app as config/celeryconfig.py sets it up."""
    queue, backend = broker_of(Address.of(broker)), result_backend_of(Address.of(results or broker))
    app = Celery(set_as_current=False)
    app.conf.update(
        broker_url=queue.url,
        broker_transport=queue.name,
        broker_transport_options=queue.options,
        broker_user=queue.username,
        broker_password=queue.password,
        result_backend=f"{backend.name}+{backend.url}",
        result_backend_transport_options=backend.options,
    )
    return app


def test_tls_checks_the_certificate_unless_told_not_to() -> None:
    app = set_up("rediss://cache.example:6380/1")
    with app.connection_for_read() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}, "without options kombu would not use TLS at all"
    assert app.backend.connparams["connection_class"] is SSLConnection
    assert app.backend.connparams["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    app = set_up("rediss://cache.example:6380/1?ssl_cert_reqs=none&ssl_ca_certs=%2Fetc%2Fca.pem")
    with app.connection_for_read() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_ca_certs": "/etc/ca.pem"}
    assert app.backend.connparams["ssl_cert_reqs"] == ssl.CERT_NONE


def test_a_socket_keeps_its_path_database_and_password() -> None:
    params = set_up(f"unix://:{SECRET}%2F@/run/my%20redis.sock?db=2").backend.connparams
    assert params["connection_class"] is UnixDomainSocketConnection
    assert (params["path"], params["db"], params["password"]) == ("/run/my redis.sock", 2, f"{SECRET}/")


def test_a_connection_that_fails_stays_with_our_transport() -> None:
    """Kombu goes on to a URL's next alternate by its scheme, which names a transport without leases."""
    with set_up(SENTINELS).connection_for_read() as connection:
        for _ in range(3):
            connection.maybe_switch_next()
            assert type(connection.transport).__module__ == "workers.broker.kombu.transport"


@pytest.mark.parametrize("url", [SENTINELS, f"redis://:{SECRET}@a/0", f"unix://:{SECRET}@/run/redis.sock"])
def test_passwords_are_hidden_where_celery_shows_its_settings(url: str) -> None:
    app = set_up(url)
    with app.connection_for_read() as connection:
        assert connection.password == SECRET
        inspected = {name: value for name, value in connection.info().items() if name != "password"}  # as Celery does
        shown = connection.as_uri() + app.backend.as_uri() + repr(broker_of(Address.of(url)))
    assert SECRET not in shown + dumps(inspected) + dumps(app.conf.table(censored=True)) + app.bugreport()


@pytest.mark.parametrize(
    ("broker", "results", "same"),
    [
        ("redis://a", "redis://a:6379/0", True),
        ("redis://a/0", "redis://a/1", False),
        ("redis://a/1?db=2", "redis://:password@a/2", True),
        ("rediss://a/0", "rediss://b/0", False),
        ("unix:///run/redis.sock", "unix:///run/redis.sock?db=0", True),
        ("unix:///run/redis.sock", "unix:///run/redis.sock?db=1", False),
        ("unix:///run/redis.sock", "unix:///run/other.sock", False),
        ("unix:///run/redis.sock", "redis://a/0", False),
        ("sentinel://a;sentinel://b/0?master_name=mill", "sentinel://b;sentinel://a/0?master_name=mill", True),
        ("sentinel://a/0?master_name=mill", "sentinel://a/0?master_name=other", False),
        ("sentinel://a/0?master_name=mill", "sentinel://a/1?master_name=mill", False),
        ("sentinel://a/0?master_name=mill", "sentinel://b/0?master_name=mill", False),
        ("sentinel://a:6379/0?master_name=mill", "redis://a/0", False),
    ],
)
def test_results_know_whether_leases_are_in_the_same_redis(broker: str, results: str, same: bool) -> None:
    """Only then one script can refuse the result of a lost lease."""
    assert bool(set_up(broker, results).backend.names.leases) is same


@pytest.mark.covers("setting", "concurrency", "loop_patience_s")
def test_celery_is_given_what_the_settings_say() -> None:
    show = "from workers import app; c = app.conf; print(c.worker_concurrency, c.broker_transport_options)"
    environ = {**os.environ, "PROMPTMILL_CONCURRENCY": "7", "PROMPTMILL_LOOP_PATIENCE_S": "3.5"}
    shown = subprocess.run([sys.executable, "-c", show], env=environ, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("7 ")
    assert "'loop_patience_s': 3.5" in shown
