"""The import contracts forbid what their names say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import tasks
import workers

PROJECT = tomllib.loads((Path(tasks.__file__).parents[1] / "pyproject.toml").read_text())
MODULES = {"python_dotenv": "dotenv"}
"""Where a package's module has another name."""


def modules_of(dependencies: list[str]) -> set[str]:
    names = [re.split(r"[^\w-]", dependency, maxsplit=1)[0].replace("-", "_") for dependency in dependencies]
    return {MODULES.get(name, name) for name in names}


def test_the_map_of_the_engine_names_every_room() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    [inside] = [contract for contract in contracts if contract.get("containers") == ["workers"]]
    rooms = {room for layer in inside["layers"] for room in layer.split(" | ")}
    assert set(re.findall(r"^    (\w+)/?  ", workers.__doc__ or "", re.M)) == rooms


def test_the_client_may_import_no_dependency_but_redis() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    [client] = [contract for contract in contracts if contract.get("source_modules") == ["tasks"]]
    dependencies = modules_of(PROJECT["project"]["dependencies"])
    assert "redis" in dependencies
    assert dependencies - {"redis"} <= set(client["forbidden_modules"])
    assert "redis" not in client["forbidden_modules"]
