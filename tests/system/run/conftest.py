from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import get_settings

from .run_harness import PRIVATE, RunCommand


@pytest.fixture
def promptmill_run(tmp_path: Path) -> Iterator[RunCommand]:
    command = RunCommand(tmp_path)
    yield command
    command.close()


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting and no key of whoever runs the tests, and a working directory without `.env`."""
    for name in [name for name in os.environ if name.startswith(PRIVATE)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
