"""A deployment of one worker, as its environment says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.settings import get_settings
from tests.support.redis_server import RedisServer


@pytest.fixture
def deployment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: object, server: RedisServer
) -> Iterator[pytest.MonkeyPatch]:
    """An empty Redis, a catalogue that the test writes to `catalog.toml`, and no key of a preset. Set what else it has
    before the settings are read."""
    for name in ("OPENAI_API_KEY", "HOLYSHEEP_API_KEY", "N1N_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", server.url)
    monkeypatch.setenv("PROMPTMILL_CATALOG", str(tmp_path / "catalog.toml"))
    get_settings.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()


CATALOG = """
[providers.p]
base_url = "{url}"
api_keys = ["P_KEY"]
[models.m]
provider = "p"
{model}
"""


@pytest.fixture
def deploy(deployment: pytest.MonkeyPatch) -> Callable[..., None]:
    """`deploy(URL, model="flex = true", STREAM__KEEP_S="5")`: one provider with one model `m`, and settings."""

    def to_disk(url: str, *, model: str = "", key: str = "sk-one-4d1f", **settings: str) -> None:
        Path("catalog.toml").write_text(CATALOG.format(url=url, model=model))
        for name, value in settings.items():
            deployment.setenv(f"PROMPTMILL_{name}", value)
        deployment.setenv("P_KEY", key)

    return to_disk
