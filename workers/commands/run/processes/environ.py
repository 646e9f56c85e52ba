"""The environment in which a run starts processes of the engine."""

from __future__ import annotations

import os
from pathlib import Path

import workers

__all__ = ["engine_environ"]

CELERY_OVERRIDES = frozenset({"APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND", "WORKDIR"})
"""Celery's command takes these, and CELERY_*, from the environment, and they would stand over our settings."""


def engine_environ(**settings: str) -> dict[str, str]:
    """Our environment for a process of the engine, with these settings in it.

    The user's directory comes after the engine's on the import path: it may hold a package `workers` of its own.
    """
    paths = [str(Path(workers.__file__).parents[1]), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    inherited = {name: value for name, value in os.environ.items() if not _overrides_settings(name)}
    return inherited | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | settings


def _overrides_settings(name: str) -> bool:
    return name in CELERY_OVERRIDES or name.startswith("CELERY_")
