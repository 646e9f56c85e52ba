"""What README and docs say, holds: links lead somewhere, commands and options exist, the first screen's app runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import yaml
from typer.testing import CliRunner

import tasks
from config.catalog import load_catalog
from tasks.testing import InMemoryQueue
from workers.cli import app as promptmill

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text())) | set(
        re.findall(r"^\$ make ([a-z-]+)", page.read_text(), re.MULTILINE)
    )
    assert named <= MAKE_TARGETS


def help_of(command: str) -> str:
    result = CliRunner().invoke(promptmill, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_promptmill_exist(page: Path) -> None:
    for command, rest in re.findall(
        r"promptmill (run|simulate|doctor|limits|metrics|status|cancel|dead)\b([^`\n]*)", page.read_text()
    ):
        shown = help_of(command)
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in shown, f"{page.name}: promptmill {command} has no {option}"


async def test_the_first_screens_app_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an in-memory queue in the place of the one that needs a Redis."""
    source = blocks(ROOT / "README.md", "python")[0]
    assert len(source.strip().splitlines()) <= 12
    client = ModuleType("promptmill_client")
    client.__dict__.update(tasks.__dict__)
    client.PromptQueue = lambda url: InMemoryQueue(answer=lambda body: f"You asked: {body['messages'][0]['content']}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "promptmill_client", client)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(compile(source, "README.md", "exec"), namespace)
    transport = httpx.ASGITransport(app=namespace["app"])  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        reply = await http.post("/ask", params={"question": "How many?"})
    assert reply.json() == {"answer": "You asked: How many?"}


def test_the_simulated_catalogue_sends_every_preset_to_the_simulator() -> None:
    catalog = load_catalog(ROOT / "config" / "simulated.toml")
    assert {provider.base_url for provider in catalog.providers.values()} == {"http://simulator:8000/v1"}
    assert all(not provider.api_keys for provider in catalog.providers.values())
    assert catalog.models.keys() == load_catalog().models.keys()
    assert catalog.provider(catalog.model("whatever")).any_model


@pytest.mark.parametrize("password", ["", "canary-4be1"])
def test_compose_s_flower_always_has_a_password(tmp_path: Path, password: str) -> None:
    """Its command, run by hand with a `celery` that shows what it is given."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    shell, option, script = compose["services"]["flower"]["command"]
    celery = tmp_path / "celery"
    celery.write_text('#!/bin/sh\necho "auth=$FLOWER_BASIC_AUTH left=$FLOWER_PASSWORD args=$*"\n')
    celery.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FLOWER_PASSWORD": password}
    ran = subprocess.run(
        [shell, option, script.replace("$$", "$")], env=environ, capture_output=True, text=True, check=True
    )
    shown = r"^auth=flower:(\S+) left= args=-A workers flower --address=0.0.0.0 --port=5555$"
    found = re.search(shown, ran.stdout, re.MULTILINE)
    assert found is not None, ran.stdout
    assert len(found[1]) >= 8
    assert found[1] == (password or found[1])
    assert ("password " in ran.stdout) == (not password), "one that was chosen is not shown"


def test_compose_starts_what_the_docs_say() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert set(services) == {"redis", "worker", "flower", "metrics", "simulator"}
    redis = services["redis"]["command"]
    assert redis[redis.index("--maxmemory-policy") + 1] == "noeviction"
    assert redis[redis.index("--appendonly") + 1] == "yes"
    assert services["worker"]["command"][:4] == ["celery", "-A", "workers", "worker"]
    assert services["worker"]["environment"]["PROMPTMILL_CATALOG"] == "${PROMPTMILL_CATALOG:-}"
    assert services["metrics"]["command"][:2] == ["promptmill", "metrics"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published), "nothing is open to the network by default"
    assert all(service.get("depends_on") is not None for name, service in services.items() if name != "redis")
