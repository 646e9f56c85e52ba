"""Promptmill's engine: `celery -A workers worker`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .celery.app import app as app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # The app reads the settings when it is made; `promptmill simulate --help` must work without any.
    if name == "app":
        from .celery.app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
