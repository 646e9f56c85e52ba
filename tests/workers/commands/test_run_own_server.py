"""`promptmill run --base-url`: what is refused, and the catalogue that the workers get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.catalog import load_catalog
from workers.commands.run.errors import UnusableInput
from workers.commands.run.options import RunOptions
from workers.commands.run.processes.own_server import OwnServer
from workers.commands.run.processes.simulation import Simulation

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "localhost:8000"}, "--base-url: must be a URL"),
        ({"base_url": "http://user:canary@host/v1"}, "must not carry a user or password"),
        ({"base_url": URL, "api_key_env": "sk-canary"}, "--api-key-env: must be the name"),
        ({"api_key_env": "OWN_KEY"}, "Add --base-url"),
        ({"base_url": URL, "simulation": Simulation()}, "leave one of them out"),
        ({"base_url": URL, "workers": 0, "redis": "redis://host"}, "leave out --workers 0"),
    ],
)
def test_what_can_not_be_meant_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        RunOptions(input=tmp_path / "in.jsonl", output=tmp_path / "out.jsonl", **options)
    assert says in str(caught.value)
    assert "canary" not in str(caught.value)


def test_every_name_is_the_servers_own(tmp_path: Path) -> None:
    server = OwnServer(URL, "OWN_KEY")
    path = tmp_path / "catalog.toml"
    path.write_text(server.catalog_text(), encoding="utf-8")
    catalog = load_catalog(path)
    names = [*load_catalog().models, "qwen", "org/own", "openai/gpt-9"]
    models = [catalog.model(name) for name in names]
    assert [(model.provider, model.upstream) for model in models] == [("server", name) for name in names]
    assert all(model.price is None and model.limits.rpm is None for model in models)
    assert catalog.provider(models[0]).api_keys == ("OWN_KEY",)
    assert server.catalog().providers["server"] == catalog.providers["server"]
