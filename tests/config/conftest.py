from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.catalog import Catalog, load_catalog
from config.settings import PREFIX, get_settings


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """No `PROMPTMILL_*` variable, an empty working directory, and settings that are read anew."""
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()


@pytest.fixture
def load_text(tmp_path: Path) -> Callable[[str], Catalog]:
    """Loads a catalogue from its text, as the file `mine.toml`."""

    def load(text: str) -> Catalog:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return load_catalog(path)

    return load
