"""Celery clients of the tests, and how all their connections are closed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = ["close", "closing"]


def close(app: Celery) -> None:
    """Close the app, and the connections of its result backend.

    `Celery.close` leaves those to the garbage collector, which may come upon a socket before it comes upon the
    connection that would have closed it: a ResourceWarning, in whatever test runs then.
    """
    made = vars(app.backend)
    if "result_consumer" in made:
        made["result_consumer"].stop()
    if "client" in made:
        made["client"].connection_pool.disconnect()
    app.close()


@contextmanager
def closing(app: Celery) -> Iterator[Celery]:
    """The app, closed at the end."""
    try:
        yield app
    finally:
        close(app)
