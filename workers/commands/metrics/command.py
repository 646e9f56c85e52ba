"""The command `promptmill metrics`."""

from __future__ import annotations

import os
import signal
import socket
from typing import Annotated, NoReturn

import typer
from prometheus_client import CollectorRegistry, start_http_server

from tasks.wire.redis_keys import QUEUE
from workers.telemetry import logs

from ..common import RedisOption, address_of, settings_or_fail
from ..failing import fail
from ..ready import ReadyFdOption, check_ready_fd, tell_ready
from .collector import RedisCollector

__all__ = ["metrics"]

DEFAULT_PORT = 9464
"""What OpenTelemetry's exporters for Prometheus listen on, too."""


def metrics(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT,
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", "-Q", help="Celery queues to show; repeat it, or use commas.", show_default=QUEUE),
    ] = None,
    redis: RedisOption = None,
    ready_fd: ReadyFdOption = None,
) -> None:
    """Serve the queue's and the limiters' figures to Prometheus, for a whole deployment.

    Prints its URL when it is ready. Reads Redis when it is scraped, and changes nothing there; while Redis is away,
    promptmill_up is 0. Who may connect may read: names of models and fingerprints of keys, no prompts and no keys.
    """
    check_ready_fd(ready_fd)
    settings = settings_or_fail()
    logs.configure()
    queues = [name for names in queue or [QUEUE] for name in names.split(",")]
    collector = RedisCollector(address_of(redis, settings.broker), queues=queues, settings=settings)
    _serve(collector, host=host, port=port, ready_fd=ready_fd)


def _serve(collector: RedisCollector, *, host: str, port: int, ready_fd: int | None) -> NoReturn:
    """Until a signal comes. Then at once: nothing is half done, and a thread that resolves a name would hold us up."""
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, _ = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "that is no address"
        fail(f"can't listen on {host} port {port} ({reason}); choose others with --host and --port (0: a free one)")
    ending = _ending()
    shown = f"[{host}]" if ":" in host else host
    tell_ready(f"http://{shown}:{server.server_port}/metrics", ready_fd)
    ending.recv(1)
    os._exit(0)


def _ending() -> socket.socket:
    """Has a byte when SIGTERM or SIGINT has come.

    The kernel gives a signal to any thread. A handler in Python would wait for the main thread, which then sleeps on.
    """
    ear, voice = socket.socketpair()
    voice.setblocking(False)
    signal.set_wakeup_fd(voice.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return ear
